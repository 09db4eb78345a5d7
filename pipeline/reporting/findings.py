"""What the numbers of a sweep say, in words; each clause computed, and what cannot be is said to be missing."""

import math
from collections.abc import Iterable

from pipeline import measures
from pipeline.reporting.columns import HELD_OUT_LOSS
from pipeline.reporting.equal_density import at_density
from pipeline.reporting.example_facts import example_words
from pipeline.reporting.results import NOT_SET, Results, Row, TrialResult
from pipeline.reporting.statistics import ENOUGH_SEEDS, mean, paired_difference, signed
from tiny_onn.arms import GRANULARITY

_SPARSE = 0.1  # a layer with a smaller part of its experts active counts as sparse
MOST_ROWS = 12  # arms in cells of the grid that are gone through one by one
_NAMED = 6  # of the trials that did not finish
_SAME = 1.05  # factors nearer to 1 than this count as equal


def findings(results: Results, reference: str) -> list[str]:
    """Paragraphs: for each arm density and loss; then selectivity, what Goodness ranks by, and what is not shown.

    Of a sweep of more than MOST_ROWS rows only the last: its tables say the rest, and say it shorter.
    """
    cells = list(dict.fromkeys(row.cell for row in results.rows))
    paragraphs = []
    for cell in cells if len(results.rows) <= MOST_ROWS else []:
        rows = [row for row in results.rows if row.cell == cell]
        compared = results.row(reference, cell)
        head = f"With {', '.join(f'{name} = {value}' for name, value in cell)}: " if cell else ""
        texts = [f"There is no finished {reference} trial to compare with."] if compared is None else []
        pairs = []
        for row in rows:
            if compared is not None and row is not compared:
                texts.append(f"{density(row, compared)} {loss(row, compared)}")
                pairs.append(len(row.trials.keys() & compared.trials.keys()))
        if few := [count for count in pairs if 1 < count < ENOUGH_SEEDS]:  # of one seed there is no interval
            texts.append(
                f"With {min(few)} seeds, an interval only shows the spread of the differences: it is too narrow."
            )
        sparse = [text for row in rows if (text := selectivity(row))]
        if dense := [row.arm for row in rows if _is_dense(row)]:
            sparse.append(f"No layer of {_or(dense)} has less than {100 * _SPARSE:.0f} % of its experts active.")
        ranked = [text for row in rows if (text := ranking(row))]
        paragraphs += [head + text for text in (*texts, " ".join(sparse), " ".join(ranked)) if text]
    return [*paragraphs, limits(results)]


def own_settings(results: Results) -> str:
    """In which settings, beside what their names say, the arms differ; empty where they do not."""
    of_arms = [
        f"{arm} {', '.join(f'{name}={value}' for name, value in settings.items() if value != NOT_SET)}"
        for arm, settings in results.own.items()
        if any(value != NOT_SET for value in settings.values())
    ]
    return f"Settings that only one arm has: {'; '.join(of_arms)}." if of_arms else ""


def density(row: Row, reference: Row) -> str:
    """In which layers the arm's activation rate is higher than the reference's, by what factor, in how many seeds."""
    seeds = sorted(row.trials.keys() & reference.trials.keys())
    if not seeds:
        return f"{row.arm} and {reference.arm} have no finished seed in common."
    factors: dict[int, float] = {}
    unanimous: dict[int, bool] = {}
    layers = sorted({layer for side in (row, reference) for s in seeds for layer in side.trials[s].layers})
    for layer in layers:
        name = measures.by_layer(measures.ACTIVATION_RATE, layer)
        pairs = [(row.trials[s].last(name), reference.trials[s].last(name)) for s in seeds]
        ours, theirs = (mean(dict(enumerate(side))) for side in zip(*pairs, strict=True))
        if math.isfinite(ours) and math.isfinite(theirs) and theirs > 0:
            factors[layer] = ours / theirs
            unanimous[layer] = all(a > b for a, b in pairs) or all(a < b for a, b in pairs)
    if not factors:
        return (
            f"The activation rates of {row.arm} and {reference.arm} are not compared, because they were not measured "
            "or are 0."
        )
    parts = []
    for word, chosen in (
        ("denser", {n: f for n, f in factors.items() if f >= _SAME}),
        ("sparser", {n: 1 / f if f else math.inf for n, f in factors.items() if f <= 1 / _SAME}),
    ):
        if chosen:
            parts.append(f"{word} than {reference.arm} in {_layers(chosen, layers)}, {_by_factor(chosen)}")
    same = [n for n, f in factors.items() if 1 / _SAME < f < _SAME]
    if same:
        parts.append(f"as active as {reference.arm} in {_layers(same, layers)} (within {100 * (_SAME - 1):.0f} %)")
    differing = [layer for layer in factors if layer not in same]
    text = f"{row.arm} is {' and '.join(parts)}"
    if apart := [f"L{layer}" for layer in layers if layer not in factors]:
        text += f", without {', '.join(apart)}, where a rate was not measured or is 0"
    if not differing or len(seeds) == 1:
        return text + ("." if len(seeds) > 1 else " (one seed).")
    doubtful = [f"L{layer}" for layer in differing if not unanimous[layer]]
    return text + (f"; the {len(seeds)} seeds disagree in {', '.join(doubtful)}." if doubtful else
                   f"; all {len(seeds)} seeds agree on that.")  # fmt: skip


def loss(row: Row, reference: Row) -> str:
    """How the held-out loss differs from the reference's, at which densities, and whether the interval excludes 0."""
    effect = paired_difference(HELD_OUT_LOSS.of_row(row), HELD_OUT_LOSS.of_row(reference))
    if effect is None or not math.isfinite(effect.mean):
        return (
            f"The held-out losses of {row.arm} and {reference.arm} are not compared, because one is missing or not "
            "finite."
        )
    differs = f"is {'higher' if effect.mean > 0 else 'lower'} by {abs(effect.mean):.4f}"
    if abs(effect.mean) < 0.00005:
        differs = "differs by less than 0.0001"
    text = f"The held-out loss of {row.arm} {differs} nats per token, {at_density(row, reference)}"
    if effect.interval is None:
        return f"{text}, in the only seed that both have; chance cannot be ruled out."
    text += f" (95 % interval {signed(effect.interval[0], 4)} to {signed(effect.interval[1], 4)}"
    return text + (", which excludes 0)." if effect.excludes_zero else ", which includes 0).")


def selectivity(row: Row) -> str:
    """How much the experts tell of the token in the arm's sparse layers, of the most they could; "" without any."""
    sparse: dict[int, tuple[float, float]] = {}
    unknown: list[str] = []
    for layer, active in _activation(row).items():
        nats, used = (_mean(row, name, layer) for name in (measures.MUTUAL_INFORMATION, measures.EFFECTIVE_EXPERTS))
        if active < _SPARSE and math.isfinite(nats):
            sparse[layer] = nats, used
        elif active < _SPARSE:
            unknown.append(f"L{layer}")
    less = f"less than {100 * _SPARSE:.0f} % active"
    dead = (
        f"Information about the token was not measured in {', '.join(unknown)} of {row.arm} ({less})."
        if unknown
        else ""
    )
    if not sparse:
        return dead
    tells = [nats for nats, _ in sparse.values()]
    text = (
        f"In the {len(sparse)} sparse layer{'s' * (len(sparse) > 1)} of {row.arm} "
        f"({less}) the active expert carries {_range(tells)} nats of information about the token"
    )
    useful = [(nats, effective) for nats, effective in sparse.values() if effective > 1]
    if useful:
        shares = [100 * nats / math.log(effective) for nats, effective in useful]
        text += f", which is {_range(shares, 0)} % of the maximum for "
        text += f"{_range([effective for _, effective in useful], 1)} effective experts"
    return f"{text}. {dead}".rstrip()


def _is_dense(row: Row) -> bool:
    """Whether every layer is known not to be sparse."""
    rates = _activation(row).values()
    return bool(rates) and all(rate >= _SPARSE for rate in rates)


def _activation(row: Row) -> dict[int, float]:
    """By layer, the mean over seeds; NaN where it is missing for any."""
    layers = sorted({layer for trial in row.trials.values() for layer in trial.layers})
    return {layer: _mean(row, measures.ACTIVATION_RATE, layer) for layer in layers}


def _mean(row: Row, name: str, layer: int) -> float:
    return mean({seed: trial.last(measures.by_layer(name, layer)) for seed, trial in row.trials.items()})


def ranking(row: Row) -> str:
    """By which of its components Goodness ranks the experts."""
    names = {
        "contribution": measures.RANK_CORRELATION_CONTRIBUTION,
        "relevance": measures.RANK_CORRELATION_RELEVANCE,
        "cost": measures.RANK_CORRELATION_COST,
    }
    correlations = {word: mean({s: t.over_layers(name) for s, t in row.trials.items()}) for word, name in names.items()}
    known = {word: value for word, value in correlations.items() if math.isfinite(value)}
    if not known:
        return ""
    strongest = max(known, key=lambda word: abs(known[word]))
    listed = ", ".join(f"{word} {signed(value, 2)}" for word, value in known.items())
    # Where all tokens share one Goodness, all experts are ranked by it, once. Of an arm of one's own it is not known.
    ranked = "active experts" if GRANULARITY.get(row.arm) == "token" else "experts"
    return f"Goodness in {row.arm} ranks {ranked} most like their {strongest} (rank correlations: {listed})."


def limits(results: Results) -> str:
    """What the numbers do not show, from what was and was not run."""
    trials = [trial for row in results.rows for trial in row.trials.values()]
    if not trials:
        return "No trial has finished, so there are no results."
    sizes = {name: _values(trials, name) for name in ("model.hidden", "model.layers", "training.steps")}
    data = " / ".join(sorted({name for name, _ in results.data})) or _values(trials, "data.dataset")
    seeds = sorted({trial.seed for trial in trials})
    diverged = sorted({f"{t.arm} s{t.seed}" for t in trials if not math.isfinite(t.held_out_loss)})
    text = (
        f"Limits: these results are from {len(seeds)} seed{'s' * (len(seeds) != 1)}, hidden width "
        f"{sizes['model.hidden']}, {_counted(sizes['model.layers'], 'layer')}, "
        f"{_counted(sizes['training.steps'], 'training step')} and "
        f"the data {data}. Not tested: wider or deeper models, longer training, other data"
    )
    words = example_words(results)
    drawn = (trial.last(f"held_out/{each.name}") for trial in trials for each in words.measured)
    if words.not_drawn and not any(map(math.isfinite, drawn)):
        text += f", {words.not_drawn}"
    text += (
        ". Step times hold for this machine under this load. Closed experts are still computed, so sparsity saves no "
        "time yet."
    )
    if settings_text := own_settings(results):
        text += f" {settings_text}"
    if len(counts := {trial.params.get("workers.count", "") for trial in trials}) > 1:
        text += f" The trials differ in workers.count ({_or(sorted(counts))}), and therefore in their batches."
    if diverged:
        text += f" Not compared by held-out loss, because theirs is not finite: {', '.join(diverged)}."
    if results.pruned:
        text += (
            f" {results.pruned} of {results.total} trials were pruned (ended early, because other settings did better) "
            "and are left out: only the other samples are compared."
        )
    missing = results.total - results.finished - results.pruned
    if missing:
        named = ", ".join(results.unfinished[:_NAMED]) + (", ..." if len(results.unfinished) > _NAMED else "")
        text += f" {missing} of {results.total} trials did not finish and are left out{named and ': '}{named}."
    return text


def _values(trials: list[TrialResult], name: str) -> str:
    return " / ".join(sorted({trial.params.get(name, "unknown") for trial in trials}))


def _counted(number: str, word: str) -> str:
    return f"{number} {word}{'s' * (number != '1')}"


def _layers(chosen: Iterable[int], everything: list[int]) -> str:
    chosen = sorted(chosen)
    if len(chosen) == len(everything):
        return f"all {len(chosen)} layers" if len(chosen) > 1 else f"its only layer L{chosen[0]}"
    return ", ".join(f"L{layer}" for layer in chosen)


def _by_factor(chosen: dict[int, float]) -> str:
    least, most = min(chosen, key=chosen.__getitem__), max(chosen, key=chosen.__getitem__)
    if f"{chosen[least]:.1f}" == f"{chosen[most]:.1f}":
        return f"by a factor of {chosen[most]:.1f}"
    return f"by a factor of {chosen[least]:.1f} (L{least}) to {chosen[most]:.1f} (L{most})"


def _range(values: list[float], digits: int = 2) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _or(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
