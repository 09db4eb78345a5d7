"""The report as one page of HTML, self-contained: figures inlined, readable on a phone, every name escaped."""

import math
from collections.abc import Callable, Sequence
from html import escape

from pipeline import measures
from pipeline.colours import arm_colour
from pipeline.reporting import figures, figures_of_seeds
from pipeline.reporting.activation_figure import activation_map
from pipeline.reporting.arc_grids import grid_svg, verdict
from pipeline.reporting.columns import Column
from pipeline.reporting.comparisons import note
from pipeline.reporting.findings import CONTROL
from pipeline.reporting.page_parts import cell, dotted, heading, page, paragraph, picture, table
from pipeline.reporting.report import LEGEND, Report, headline, is_best
from pipeline.reporting.results import Results, Row, Trial
from pipeline.reporting.statistics import ENOUGH_SEEDS, Difference, mean
from pipeline.tracking.describe import ENVIRONMENT

_TASKS = 4  # held-out test pairs that are drawn
_COMMIT = "mlflow.source.git.commit"
Section = tuple[str, str, str]  # title, anchor, HTML; "" where the runs have nothing for it


def html(report: Report) -> str:
    """The whole page. What the runs do not hold is left out, and named at the end."""
    results = report.results
    parts = [f"<h1>{escape(results.sweep)}</h1>", *_about(results), paragraph(headline(results), "lead")]
    if not results.rows:
        return page(results.sweep, [*parts, *map(paragraph, report.findings)])
    sections = [make(report) for make in _SECTIONS]
    there = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for title, anchor, _ in there)
    parts += [f"<nav>{links}</nav>", _few_seeds(results), _large(results)]
    for title, anchor, body in there:
        parts += [heading(title, anchor), body]
    missing = [title for title, _, body in sections if not body]
    if missing:
        left_out = (
            f"Left out, because these runs did not record it or there is nothing to compare: {', '.join(missing)}."
        )
        parts.append(paragraph(left_out, "lead"))
    return page(results.sweep, parts)


def _about(results: Results) -> list[str]:
    words = {"description": "", **{name: name.replace("_", " ") for name in results.about if name != "description"}}
    return [
        f"<p>{f'<b>{escape(word)}</b>: ' if word else ''}{escape(results.about[name])}</p>"
        for name, word in words.items()
        if name in results.about
    ]


def _few_seeds(results: Results) -> str:
    seeds = max(len(row.trials) for row in results.rows)
    if seeds >= ENOUGH_SEEDS:
        return ""
    return paragraph(
        f"At most {seeds} seed{'s' * (seeds != 1)} an arm: too few to tell how far other seeds would differ. Read "
        "differences as what these runs did, not as what such runs do.",
        "note",
    )


def _large(results: Results) -> str:
    words = figures.left_out(results)
    return paragraph(words, "note") if words else ""


def _findings(report: Report) -> Section:
    return "Findings", "findings", "\n".join(map(paragraph, report.findings))


def _means(report: Report) -> Section:
    results = report.results
    head = ["arm", *_grid(results), "seeds", *_titles(report.columns)]
    rows = [
        [
            *_names(row),
            str(len(row.trials)),
            *(cell(c.show(mean(c.of_row(row))), bold=is_best(results, row, c)) for c in report.columns),
        ]
        for row in results.rows
    ]
    return "Means over seeds", "means", table(head, rows, 1 + len(results.varying)) + paragraph(LEGEND.replace("*", ""))


def _effects(report: Report) -> Section:
    title, results = f"Differences to {CONTROL}, paired by seed", report.results
    if not report.differences:
        return title, "differences", ""
    figure = figures_of_seeds.effects(results, report.differences, report.columns)
    rows = [
        [
            *_names(results.rows[place]),
            *(_difference(report, place, found.get(c.key), c) for c in report.columns),
        ]
        for place, found in report.differences.items()
    ]
    body = picture(
        figure,
        "Differences of each arm to the control, seed by seed",
        "A dot for each seed: the arm less the control of the same seed. Stroke: their mean. Bar: the 95 % percentile "
        "bootstrap interval of the mean.",
    )
    body += table(["arm", *_grid(results), *_titles(report.columns)], rows, 1 + len(results.varying))
    return title, "differences", body + paragraph(note(report.differences, report.comparisons), "note")


def _difference(report: Report, place: int, found: Difference | None, column: Column) -> str:
    if found is None or math.isnan(found.mean):
        return "–"
    small = []
    if found.interval is not None:
        small.append(f"[{', '.join(column.show(end, sign=True) for end in found.interval)}]")
    if (tested := report.comparisons.get((place, column.key))) is not None:
        small.append(f"p {tested.p:.2g}, Holm {tested.adjusted:.2g}")
    inner = cell(column.show(found.mean, sign=True), small[0] if small else "1 seed")
    return inner + "".join(f"<small>{escape(text)}</small>" for text in small[1:])


def _curves(report: Report) -> Section:
    figure = figures.learning_curves(report.results)
    words = "Mean over seeds; the band goes from the lowest seed to the highest."
    return "Learning curves", "curves", picture(figure, "Losses and accuracy over training steps", words)


def _activation(report: Report) -> Section:
    figure = activation_map(report.results)
    words = (
        "The part of the experts that a token activates, by layer and step, mean over valid tokens, projections and "
    )
    words += "seeds. Dark is sparse; the colours follow the square root, so that small rates can be told apart."
    return "Activation by layer and step", "activation", picture(figure, "Heat maps of activation rates", words)


def _distributions(report: Report) -> Section:
    figure = figures.distributions(report.results, report.filed)
    words = (
        "All pairs of a valid token and an expert in the batch of the last evaluation, by layer; mean over seeds. What "
        "is too small for the scale, zeros above all, is a percentage at the left. Costs of arms that sum over tokens "
        "are of the mean loss, those of single tokens of their own loss: compare shapes, not places. Right of the "
        "dashed line an expert is judged good. Heights have a scale of their own in each panel."
    )
    title = "Learning cost and Goodness by layer"
    return title, "distributions", picture(figure, "Histograms of learning cost and Goodness by layer", words)


def _experts(report: Report) -> Section:
    figure = figures.experts_in_use(report.results)
    words = (
        "Effective experts: exp of the entropy of the mean routing distribution, at the end of training, mean over a "
    )
    words += "layer's projections. A dot for each seed."
    return "Experts in use", "experts", picture(figure, "Experts in use by layer", words)


def _predictions(report: Report) -> Section:
    title, found = "Held-out predictions", report.filed.predictions
    shown = [
        (row, trial, found[trial.run_id]) for row, trial in _first_trials(report.results) if found.get(trial.run_id)
    ]
    if not shown:
        return title, "predictions", ""
    body = []
    for place, drawn in enumerate(shown[0][2][:_TASKS]):
        grids = [("input", "", grid_svg(drawn.input, "input")), ("target", "", grid_svg(drawn.target, "target"))]
        for row, trial, drawings in shown:
            if place < len(drawings) and (drawings[place].task_id, drawings[place].pair) == (drawn.task_id, drawn.pair):
                mine = drawings[place]
                drawing = '<span class="nothing"></span>'
                if mine.prediction is not None:
                    drawing = grid_svg(mine.prediction, f"prediction of {row.arm}")
                grids.append((f"{figures.name_of(row)} · s{trial.seed}", verdict(mine), drawing))
        inner = "".join(
            f"<div><b>{escape(name)}</b>{escape(said) or '&nbsp;'}{drawing}</div>" for name, said, drawing in grids
        )
        body.append(f'<h3>{escape(drawn.task_id)}, test pair {drawn.pair}</h3><div class="task">{inner}</div>')
    text = paragraph(
        f"The first {min(_TASKS, len(shown[0][2]))} test pairs of the held-out tasks that are decoded, in the order of "
        "the data and not chosen by what came out, drawn greedily by each arm's lowest seed." + _exact(report.results)
    )
    return title, "predictions", text + "".join(body)


def _exact(results: Results) -> str:
    found = []
    for row in results.rows:
        value = mean({seed: trial.last(measures.HELD_OUT_PAIRS_EXACT) for seed, trial in row.trials.items()})
        if math.isfinite(value):
            found.append(f"{figures.name_of(row)} {100 * value:.1f} %")
    return f" Exactly right over all decoded pairs and seeds: {', '.join(found)}." if found else ""


def _speed(report: Report) -> Section:
    figure = figures_of_seeds.speed_and_memory(report.results)
    words = "A dot for each seed: the median step, and throughput and a worker's memory at the end of training, on the "
    words += "machine and under the load that there was. The stroke is their mean."
    return "Step time and memory", "speed", picture(figure, "Step time, throughput and memory by arm", words)


def _environment(report: Report) -> Section:
    trials = [trial for row in report.results.rows for trial in row.trials.values()]
    facts: dict[str, str] = {}
    names = sorted({name for trial in trials for name in trial.tags if name.startswith(f"{ENVIRONMENT}.")})
    for name in [_COMMIT, "resumed_at_git_commit", *names]:
        if values := sorted({trial.tags[name] for trial in trials if name in trial.tags}):
            facts[name.removeprefix(f"{ENVIRONMENT}.").replace("mlflow.source.", "").replace(".", " ")] = " / ".join(
                values
            )
    for name in (
        "data_hash",
        "data.dataset",
        "workers.count",
        "training.precision",
        "training.engine",
        "training.compile",
    ):
        if values := sorted({trial.params[name] for trial in trials if name in trial.params}):
            facts[name] = " / ".join(values)
    lines = table(["what", "found"], [[escape(name), escape(value)] for name, value in facts.items()], 2)
    unknown = "" if names else paragraph("Versions and machine were not recorded by these runs.")
    return "Environment", "environment", lines + unknown


def _seeds(report: Report) -> Section:
    results = report.results
    head = ["arm", *_grid(results), "seed", *_titles(report.columns)]
    rows = [
        [*_names(row), str(seed), *(cell(column.show(column.of(trial))) for column in report.columns)]
        for row in results.rows
        for seed, trial in sorted(row.trials.items())
    ]
    return "All seeds", "seeds", table(head, rows, 1 + len(results.varying))


_SECTIONS: tuple[Callable[[Report], Section], ...] = (
    _findings,
    _means,
    _effects,
    _curves,
    _activation,
    _distributions,
    _experts,
    _predictions,
    _speed,
    _environment,
    _seeds,
)


def _first_trials(results: Results) -> list[tuple[Row, Trial]]:
    return [(row, row.trials[min(row.trials)]) for row in results.rows[: figures.MOST_ROWS]]


def _names(row: Row) -> list[str]:
    return [dotted(row.arm, arm_colour(row.arm)), *(escape(value) for _, value in row.cell)]


def _grid(results: Results) -> list[str]:
    return [name.split(".")[-1].replace("_", " ") for name in results.varying]


def _titles(columns: Sequence[Column]) -> list[str]:
    return [f"{column.title} ({column.unit})" for column in columns]
