"""What a report says first: the comparison that was named before the runs, and each arm at equal density."""

import math
from collections.abc import Mapping

from pipeline.reporting.baselines import is_baseline
from pipeline.reporting.comparisons import OVER_BASELINES, Comparison, Differences, Key, Primary
from pipeline.reporting.frontier import density_of, envelopes, equally_dense, group_of
from pipeline.reporting.results import Results, Row
from pipeline.reporting.statistics import Difference, signed

_ENVELOPE = "the lowest loss that any baseline of the same seed reaches with as few experts active (95 % intervals)"
_NAMED = 8
_WIDE = 4  # neighbouring baselines whose densities differ by more than this factor bound the envelope loosely


def primary_words(
    results: Results,
    reference: str,
    primary: Primary | None,
    differences: Differences,
    comparisons: Mapping[Key, Comparison],
) -> str:
    """The primary comparison's outcome; "" where the study named none."""
    if primary is None:
        return ""
    head = f"Primary comparison, named before the runs: {primary.name}: "
    if primary.key is None:
        return f"{head}not made, because {primary.problem}."
    place, key = primary.key
    effect = differences.get(place, {}).get(key)
    if effect is None or not math.isfinite(effect.mean):
        return f"{head}not made, because a value is missing or not finite, or there is nothing to compare with."
    text = f"{head}{signed(effect.mean, 4)}{_interval(effect)}, the mean and its 95 % interval"
    tested = comparisons.get(primary.key)
    text += (
        f", p = {tested.p:.3g} by the sign-flip test over {effect.seeds} seeds, without correction" if tested else ""
    )
    row = results.rows[place]
    compared = results.row(reference, row.cell)
    if key == OVER_BASELINES or compared is None:
        text += f", at {_percent(density_of(row))} active"
    else:
        text += f", {at_density(row, compared)}"
    return f"{text}. All other comparisons are exploratory."


def at_density(row: Row, reference: Row) -> str:
    """Whether two arms' losses may be compared as they are."""
    ours, theirs = density_of(row), density_of(reference)
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        return "at densities that were not measured, so the losses may not be comparable"
    if equally_dense((ours, theirs)):
        return f"at equal density ({_percent(ours)} and {_percent(theirs)} active)"
    return f"but not at equal density: {_percent(ours)} of its experts are active against {_percent(theirs)}"


def _percent(density: float) -> str:
    return f"{100 * density:.3g} %"


def equal_density_words(results: Results, differences: Differences) -> list[str]:
    """A paragraph for each arm that is no baseline: how far it lies from the baselines' envelope at its densities."""
    curves = envelopes(results)
    others = [(place, row) for place, row in enumerate(results.rows) if not is_baseline(row.arm)]
    if not others:
        return []
    if not curves:
        return [
            "No baseline was run (a router that the task loss trains, or a dense model), so the losses cannot be "
            "compared at equal density. Add an arm such as top_k or dense."
        ]
    sentences: dict[str, list[str]] = {}
    outside: list[str] = []
    for place, row in others:
        effect = differences.get(place, {}).get(OVER_BASELINES)
        cell = "".join(f", {field.split('.')[-1]} {value}" for field, value in row.cell)
        if effect is None:
            outside.append(f"{row.arm} ({_percent(density_of(row))} active{cell})")
        elif not math.isfinite(effect.mean):
            sentences.setdefault(row.arm, []).append(f"no finite loss in a seed{cell}")
        else:
            sentences.setdefault(row.arm, []).append(_one(results, row, effect))
    paragraphs = [f"{arm}: {'; '.join(each)}." for arm, each in sentences.items()]
    if paragraphs:
        paragraphs[0] = f"At equal density, nats above (+) or below (-) {_ENVELOPE}. {paragraphs[0]}"
    if outside:
        named = ", ".join(outside[:_NAMED]) + (", ..." if len(outside) > _NAMED else "")
        paragraphs.append(f"Not compared at equal density, because no baselines are both sparser and denser: {named}.")
    return paragraphs


def _one(results: Results, row: Row, effect: Difference) -> str:
    text = f"{signed(effect.mean, 4)}{_interval(effect)} at {_percent(density_of(row))} active"
    if effect.seeds < len(row.trials):
        text += f", in {effect.seeds} of {len(row.trials)} seeds"
    curves = envelopes(results)
    gaps = [(1.0, 1.0)]
    for seed, trial in row.trials.items():
        curve = curves.get((group_of(trial, results.varying), seed))
        if curve and math.isfinite(curve.at(trial.density)):
            (sparser, _), (denser, _) = curve.around(trial.density)
            if not any(equally_dense((trial.density, end)) for end in (sparser, denser)):
                gaps.append((sparser, denser))
    widest = max(gaps, key=lambda pair: pair[1] / pair[0])
    if widest[1] > _WIDE * widest[0]:
        text += f", interpolated from baselines as far apart as {100 * widest[0]:.3g} and {100 * widest[1]:.3g} %"
    return text


def _interval(effect: Difference) -> str:
    if effect.interval is None:
        return " (1 seed)"
    return f" [{signed(effect.interval[0], 4)}, {signed(effect.interval[1], 4)}]"
