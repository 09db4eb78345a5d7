"""The report as one page of HTML, self-contained: figures inlined, readable on a phone, every name escaped."""

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from pipeline.reporting import figures, figures_of_seeds, tables
from pipeline.reporting.activation_figure import activation_map
from pipeline.reporting.artifacts import Drawn
from pipeline.reporting.columns import HELD_OUT_LOSS
from pipeline.reporting.comparisons import note
from pipeline.reporting.example_facts import example_words
from pipeline.reporting.forgetting_figure import forgetting
from pipeline.reporting.frontier_figure import loss_over_density
from pipeline.reporting.grids import grid_svg, verdict
from pipeline.reporting.page_template import STYLE, TEMPLATE
from pipeline.reporting.phases import WORDS, gantt, phases_sentence, phases_table
from pipeline.reporting.report import Report, headline, seeds_of
from pipeline.reporting.results import Results, Row, TrialResult
from pipeline.reporting.statistics import ENOUGH_SEEDS, mean
from pipeline.reporting.tables import Cell, Table
from pipeline.tracking.describe import ENVIRONMENT
from pipeline.tracking.images import ROUTING_MAP
from pipeline.tracking.mlflow_run import GROWN

_EXAMPLES = 4  # of held-out rows
_SETTINGS = (
    *("data_hash", "data.task", "data.dataset", "model.build", "workers.count"),
    *("training.precision", "training.engine", "training.compile"),
)
_COMMIT = "mlflow.source.git.commit"


@dataclass(frozen=True)
class Picture:
    """A figure as base64 of SVG or PNG, with its caption and what a screen reader says."""

    data: str
    alt: str
    caption: str
    kind: str = "svg+xml"


@dataclass(frozen=True)
class Part:
    """A piece of a section: "text", "note", "table" (Table), "picture" (Picture), "tasks" or "samples"."""

    kind: str
    value: Any


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it; no parts where the runs have nothing for it, which is said of sections that
    every run can have."""

    title: str
    anchor: str
    parts: tuple[Part, ...]
    expected: bool = True


def html(report: Report) -> str:
    """The whole page. What the runs do not hold is left out, and named at the end."""
    results = report.results
    made = [make(report) for make in _SECTIONS] if results.rows else [_findings(report)]
    there = [section for section in made if section.parts]
    missing = [section.title for section in made if section.expected and not section.parts]
    left_out = "Left out, because these runs did not record it or there is nothing to compare: "
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE).render(
        title=results.sweep,
        style=STYLE,
        about=_about(results),
        headline=headline(results),
        notes=[text for text in (_few_seeds(report), figures.left_out(results)) if text],
        sections=there,
        missing=f"{left_out}{', '.join(missing)}." if missing else "",
    )


def _about(results: Results) -> list[tuple[str, str]]:
    others = [name for name in results.about if name not in ("description", GROWN)]  # how it has grown: a finding
    words = {"description": "", **{name: name.replace("_", " ") for name in others}}
    return [(word, results.about[name]) for name, word in words.items() if name in results.about]


def _few_seeds(report: Report) -> str:
    seeds = seeds_of(report)
    if not seeds or seeds >= ENOUGH_SEEDS:
        return ""
    return (
        f"At most {seeds} seed{'s' * (seeds != 1)} per arm: too few to predict other seeds. The differences describe "
        "these runs only."
    )


def _picture(figure: Figure | None, alt: str, caption: str) -> tuple[Part, ...]:
    if figure is None:
        return ()
    return (Part("picture", Picture(base64.b64encode(figures.svg(figure).encode()).decode(), alt, caption)),)


def _table(table: Table | None) -> tuple[Part, ...]:
    return (Part("table", table),) if table is not None and table.rows else ()


def _findings(report: Report) -> Section:
    return Section("Findings", "findings", tuple(Part("text", text) for text in report.findings))


def _equal_density(report: Report) -> Section:
    words = (
        "Each dot is a trial; those of baselines are hollow. A line joins the means of an arm's cells. Thick line: the "
        "baselines' lower envelope, the lowest loss that any of them reaches with at most so many experts active, "
        "interpolated linearly in the logarithm of the density; mean over seeds. Thin lines: the envelopes of single "
        "seeds. Below: each trial's loss minus the envelope of its seed; with many arms, dots are shifted sideways."
    )
    figure = _picture(loss_over_density(report.results), "Held-out loss against active experts", words)
    return Section("At equal density", "density", figure + _table(tables.equal_density(report)))


def _means(report: Report) -> Section:
    parts = (*_table(tables.means(report)), Part("text", tables.LEGEND.replace("*", "")))
    return Section("Means over seeds", "means", parts)


def _samples(report: Report) -> Section:
    by = report.samples[0].column if report.samples else HELD_OUT_LOSS
    end = ("highest", "high") if by.best is max else ("lowest", "low")
    words = (
        f"The samples of each arm with the {end[0]} {by.title}, as a mean over seeds; samples without every seed are "
        f"not ranked. The first was chosen for being {end[1]}: best_samples.yaml, beside this page, runs it again with "
        "fresh seeds."
    )
    parts = _table(tables.samples(report))
    return Section("Best samples", "samples", (*parts, Part("text", words)) if parts else (), expected=False)


def _effects(report: Report) -> Section:
    title, results = f"Differences to {report.reference}, paired by seed", report.results
    compared = report.to_reference
    if not compared:
        return Section(title, "differences", ())
    figure = None
    if seeds_of(report) > 1:  # of one seed there is a table of numbers to be read, and no spread to be seen
        figure = figures_of_seeds.effects(results, compared, report.columns)
    parts = _picture(
        figure,
        f"Differences of each arm to {report.reference}, seed by seed",
        f"A dot for each seed: the arm less {report.reference} of the same seed. Stroke: their mean. Bar: the 95 % "
        "percentile bootstrap interval of the mean.",
    )
    text = note(report.differences, report.comparisons, report.reference)
    return Section(
        title, "differences", parts + _table(tables.differences(report)) + ((Part("note", text),) if text else ())
    )


def _curves(report: Report) -> Section:
    figure = figures.learning_curves(report.results)
    words = "Mean over seeds; the band goes from the lowest seed to the highest."
    return Section("Learning curves", "curves", _picture(figure, "Losses and accuracy over training steps", words))


def _forgetting(report: Report) -> Section:
    words = (
        "The runs trained on one task after the other (data.order: sequential). Left: the loss on the tasks that were "
        "finished before the current one. Right: the same, less the loss right after each task's last step; above 0 "
        "the model has forgotten. Mean over seeds; the band goes from the lowest seed to the highest."
    )
    parts = _picture(forgetting(report.results), "Loss on earlier tasks over training steps", words)
    return Section("Forgetting", "forgetting", parts, expected=False)


def _activation(report: Report) -> Section:
    words = (
        "The part of the experts that a token activates, by layer and step: mean over valid tokens, projections and "
        "seeds. Dark is sparse. The colour scale is a square root, which makes small rates distinguishable."
    )
    parts = _picture(activation_map(report.results), "Heat maps of activation rates", words)
    return Section("Activation by layer and step", "activation", parts)


def _distributions(report: Report) -> Section:
    words = (
        "All pairs of a valid token and an expert in the batch of the last evaluation, by layer; mean over seeds. "
        "Values too small for the scale, mostly zeros, are a percentage at the left. Arms that sum over tokens measure "
        "costs of the mean loss, others of each token's loss: compare shapes, not positions. Right of the dashed "
        "line an expert is judged good. Each panel has its own scale of heights."
    )
    figure = figures.distributions(report.results, report.filed)
    parts = _picture(figure, "Histograms of learning cost and Goodness by layer", words)
    return Section("Learning cost and Goodness by layer", "distributions", parts)


def _experts(report: Report) -> Section:
    words = (
        "Effective experts: exp of the entropy of the mean routing distribution, at the end of training, mean over a "
        "layer's projections. A dot for each seed."
    )
    parts = _picture(figures.experts_in_use(report.results), "Experts in use by layer", words)
    return Section("Experts in use", "experts", parts)


def _predictions(report: Report) -> Section:
    title, by_run = "Held-out predictions", report.filed.predictions
    if any(report.filed.texts.values()):
        return _texts(report, title)
    first = [(row, row.trials[min(row.trials)]) for row in report.results.rows[: figures.MOST_ROWS]]
    shown = [(row, trial, by_run[trial.run_id]) for row, trial in first if by_run.get(trial.run_id)]
    if not shown:
        return Section(title, "predictions", ())
    part = example_words(report.results).part
    tasks = [_task(drawn, place, part, shown) for place, drawn in enumerate(shown[0][2][:_EXAMPLES])]
    text = (
        f"The first {len(tasks)} held-out examples in the order of the data, each with the prediction of every arm's "
        "lowest seed." + _measured(report.results)
    )
    return Section(title, "predictions", (Part("text", text), Part("tasks", tasks)))


def _texts(report: Report, title: str) -> Section:
    first = [(row, row.trials[min(row.trials)]) for row in report.results.rows[: figures.MOST_ROWS]]
    shown = [
        (row, trial, texts_of_run) for row, trial in first if (texts_of_run := report.filed.texts.get(trial.run_id))
    ]
    samples, part = [], example_words(report.results).part
    for place, one in enumerate(shown[0][2][:_EXAMPLES]):
        texts = [{"name": "given", "text": one.given}, {"name": "how it goes on", "text": one.target}]
        for row, trial, texts_of_run in shown:
            if place < len(texts_of_run) and (texts_of_run[place].task_id, texts_of_run[place].pair) == (
                one.task_id,
                one.pair,
            ):
                texts.append({"name": f"{figures.name_of(row)} · s{trial.seed}", "text": texts_of_run[place].predicted})
        samples.append({"title": f"{one.task_id}, {part} {one.pair}", "texts": texts})
    text = (
        f"The first {len(samples)} held-out examples in the order of the data, each with what every arm's lowest seed "
        "predicts." + _measured(report.results)
    )
    return Section(title, "predictions", (Part("text", text), Part("samples", samples)))


def _task(drawn: Drawn, place: int, part: str, shown: list[tuple[Row, TrialResult, list[Drawn]]]) -> dict[str, Any]:
    drawings: list[dict[str, str | None]] = [
        {"name": "input", "verdict": "", "grid": grid_svg(drawn.input, "input")},
        {"name": "target", "verdict": "", "grid": grid_svg(drawn.target, "target")},
    ]
    for row, trial, each in shown:
        if place < len(each) and (each[place].task_id, each[place].pair) == (drawn.task_id, drawn.pair):
            mine = each[place]
            grid = None if mine.prediction is None else grid_svg(mine.prediction, f"prediction of {row.arm}")
            name = f"{figures.name_of(row)} · s{trial.seed}"
            drawings.append({"name": name, "verdict": verdict(mine), "grid": grid})
    return {"title": f"{drawn.task_id}, {part} {drawn.pair}", "drawings": drawings}


def _measured(results: Results) -> str:
    """The first number that the task measures of its examples, by arm."""
    shares, first = [], next(iter(example_words(results).measured), None)
    for row in results.rows if first else ():
        assert first is not None
        value = mean({seed: trial.last(f"held_out/{first.name}") for seed, trial in row.trials.items()})
        if math.isfinite(value):
            shares.append(f"{figures.name_of(row)} {first.show(value)}")
    return f" Over all examples and seeds: {', '.join(shares)}." if shares else ""


def _routing_maps(report: Report) -> Section:
    words = (
        "The expert with the largest routing weight at each token of the first held-out items, layer by layer, at the "
        "last evaluation of each arm's lowest seed. A colour stands for an expert within one layer of one run: compare "
        "where colours change, not which colours there are. MLflow has the maps of every evaluation."
    )
    parts = _figures_of(report, lambda name: name.startswith(ROUTING_MAP))
    return Section("Routing maps", "routing", (Part("text", words), *parts) if parts else ())


def _observed(report: Report) -> Section:
    words = "The last figures of the runs' own observer, from each arm's lowest seed."
    parts = _figures_of(report, lambda name: not name.startswith(ROUTING_MAP))
    return Section("Figures of the observer", "observer", (Part("text", words), *parts) if parts else (), False)


def _figures_of(report: Report, wanted: Callable[[str], bool]) -> tuple[Part, ...]:
    """Of each kind in turn, those of all arms below each other, so that they can be compared."""
    rows = [(row, row.trials[min(row.trials)]) for row in report.results.rows[: figures.MOST_ROWS]]
    known = [(row, trial, report.filed.figures.get(trial.run_id, {})) for row, trial in rows]
    parts = []
    for name in sorted({name for _, _, pictures in known for name in pictures if wanted(name)}):
        for row, trial, pictures in known:
            if name in pictures:
                title = f"{name.replace('_', ' ')}: {figures.name_of(row)}, seed {trial.seed}"
                data = base64.b64encode(pictures[name]).decode()
                parts.append(Part("picture", Picture(data, title, title, "png")))
    return tuple(parts)


def _speed(report: Report) -> Section:
    words = (
        "A dot for each seed: the median step time, and throughput and a worker's memory at the end of training, for "
        "the machine and load of these runs. The stroke is the mean."
    )
    figure = figures_of_seeds.speed_and_memory(report.results)
    return Section("Step time and memory", "speed", _picture(figure, "Step time, throughput and memory by arm", words))


def _phases(report: Report) -> Section:
    title, timed = "Where the wall time went", report.filed.phases
    if timed is None:
        return Section(title, "phases", (), expected=False)
    text = Part("text", f"{phases_sentence(timed)} {WORDS.replace('*', '')}")
    words = "The command and each trial over time. Compilation, which is part of the first steps, is drawn as steps."
    chart = _picture(gantt(timed), "A Gantt chart of the command and its trials", words)
    return Section(title, "phases", (text, *_table(phases_table(timed)), *chart))


def _environment(report: Report) -> Section:
    trials = [trial for row in report.results.rows for trial in row.trials.values()]
    names = sorted({name for trial in trials for name in trial.tags if name.startswith(f"{ENVIRONMENT}.")})
    lines = []
    for name in [_COMMIT, "resumed_at_git_commit", *names]:
        if values := sorted({trial.tags[name] for trial in trials if name in trial.tags}):
            title = name.removeprefix(f"{ENVIRONMENT}.").replace("mlflow.source.", "").replace(".", " ")
            lines.append([Cell(title), Cell(" / ".join(values))])
    for name in _SETTINGS:
        if values := sorted({trial.params[name] for trial in trials if name in trial.params}):
            lines.append([Cell(name), Cell(" / ".join(values))])
    unknown = () if names else (Part("text", "Versions and machine were not recorded by these runs."),)
    return Section("Environment", "environment", _table(Table(["what", "found"], lines, 2)) + unknown)


def _seeds(report: Report) -> Section:
    return Section("All seeds", "seeds", _table(tables.seeds(report)))


_SECTIONS: tuple[Callable[[Report], Section], ...] = (
    _findings,
    _equal_density,
    _means,
    _samples,
    _effects,
    _curves,
    _forgetting,
    _activation,
    _distributions,
    _experts,
    _predictions,
    _routing_maps,
    _observed,
    _speed,
    _phases,
    _environment,
    _seeds,
)
