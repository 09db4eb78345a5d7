"""Which comparisons a report makes: the one that was named before the runs, and the others, which only explore."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline import measures
from pipeline.reporting.baselines import canonical
from pipeline.reporting.columns import EXCESS, Column
from pipeline.reporting.results import Results
from pipeline.reporting.statistics import (
    ENOUGH_SEEDS,
    MOST_EXACT,
    Difference,
    chance_of,
    holm,
    least_p,
    seeds_needed,
    sign_flip_p,
)

LEVEL = 0.05
OVER_BASELINES = "over_baselines"  # in the place of a column's key: the excess itself, against 0
Key = tuple[int, str]  # a row's place, and a column's key
Differences = Mapping[int, Mapping[str, Difference]]


@dataclass(frozen=True)
class Comparison:
    """One difference's p-value, by the sign-flip test; `adjusted` by Holm for all that explore, NaN of the primary."""

    p: float
    adjusted: float = math.nan

    @property
    def primary(self) -> bool:
        """Whether it was named before the runs, and so needs no correction."""
        return math.isnan(self.adjusted)


@dataclass(frozen=True)
class Primary:
    """The comparison that the study named before it ran. `key` is None where it cannot be made, for the `problem`."""

    name: str
    key: Key | None = None
    problem: str = ""


def reference_of(results: Results) -> str:
    """The arm that the others are compared with: the study's, or per_token."""
    named = results.about.get("reference") or results.about.get("control") or "per_token"
    arms = [row.arm for row in results.rows]
    return next((arm for arm in arms if canonical(arm) == canonical(named)), named)


def primary_of(results: Results, reference: str) -> Primary | None:
    """The study's primary comparison; None where it named none."""
    about = results.about
    if "primary_arm" not in about:
        return None
    head = "primary_cell."
    metric, arm = about.get("primary_metric", ""), about["primary_arm"]
    cell = {name.removeprefix(head): value for name, value in about.items() if name.startswith(head)}
    current = measures.current_name(metric)
    column = measures.primary_metrics().get(current) or measures.score_of(current)
    name = f"{metric} of {arm}" + "".join(f", {field} = {value}" for field, value in cell.items())
    name += " against the baselines at its density" if column == EXCESS else f" against {reference}"
    places = [
        place
        for place, row in enumerate(results.rows)
        if canonical(row.arm) == canonical(arm) and cell.items() <= dict(row.cell).items()
    ]
    if len(places) != 1:
        return Primary(name, None, f"{len(places)} rows of this report are so named")
    return Primary(name, (places[0], OVER_BASELINES if column == EXCESS else column))


def compare(differences: Differences, columns: tuple[Column, ...], primary: Primary | None) -> dict[Key, Comparison]:
    """Every difference of at least two seeds that are all finite, but for columns that are not tested."""
    tested = {column.key for column in columns if column.tested} | {OVER_BASELINES}
    p_values = {
        (place, key): p
        for place, row in differences.items()
        for key, each in row.items()
        if key in tested and not math.isnan(p := sign_flip_p(each.values))
    }
    named = primary.key if primary else None
    exploring = {key: p for key, p in p_values.items() if key != named}
    adjusted = dict(zip(exploring, holm(list(exploring.values())), strict=True))
    return {key: Comparison(p, adjusted.get(key, math.nan)) for key, p in p_values.items()}


def note(differences: Differences, comparisons: Mapping[Key, Comparison], reference: str) -> str:
    """What the number of exploratory comparisons and of seeds leaves to be said; "" where there are none."""
    exploring = {key: each for key, each in comparisons.items() if not each.primary}
    if not exploring:
        return ""
    total = len(exploring)
    seeds = [differences[place][key].seeds for place, key in exploring]
    to_baselines = sum(key == OVER_BASELINES for _, key in exploring)
    text = f"{total} exploratory comparison{'s' * (total != 1)}: "
    parts = [f"{total - to_baselines} to {reference}"] if total > to_baselines else []
    parts += [f"{to_baselines} to the baselines at equal density"] if to_baselines else []
    text += " and ".join(parts)
    by_chance = sum(chance_of(LEVEL, each) for each in seeds)
    if total > 1 and by_chance >= 0.05:
        text += f"; without any real difference, {by_chance:.1f} of them would be at or below {LEVEL:g} by chance"
    text += (
        ". The p-values come from the exact sign-flip test over seeds, which only assumes that without a difference "
    )
    text += "both signs are equally likely; Holm's correction makes them valid for all of these comparisons together. "
    most = max(seeds)
    if most > MOST_EXACT:
        text += f"With more than {MOST_EXACT} seeds the signs are sampled at random, so the p-values are approximate. "
    if least_p(most) > LEVEL / total:
        needed = seeds_needed(total, LEVEL)
        text += (
            f"With {most} seeds no p-value can be below {least_p(most):.2g}, however large the difference, so no "
            f"exploratory difference can be significant here; {needed} seeds are needed for one of {total}. Compare "
            "the size of a difference with its spread over seeds, and check whether all seeds agree on its sign."
        )
    else:
        passed = sum(each.adjusted <= LEVEL for each in exploring.values())
        text += f"{passed} of {total} are below {LEVEL:g} after the correction."
    if min(seeds) < ENOUGH_SEEDS:
        text += (
            f" With fewer than {ENOUGH_SEEDS} seeds a bootstrap interval only shows the spread of the differences: it "
            "is too narrow to predict other seeds."
        )
    return text
