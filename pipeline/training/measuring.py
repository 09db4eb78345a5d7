"""What is measured of a logged step, by functions that each add their part to its entry.

What a training step, routing health or a pass over held-out rows is measured by stands in `pipeline.measures`.
"""

import math
import statistics
from typing import Any

from pipeline import measures
from pipeline.data.contract import Examples
from pipeline.data.manifest import Split
from pipeline.data.sequence import Sequence
from pipeline.data.sequential import SequentialLoader
from pipeline.training.agreement import gather_json
from pipeline.training.evaluate import evaluate, together
from pipeline.training.machine import peak_memory_mib
from pipeline.training.modes import in_evaluation_mode
from pipeline.training.observer import Numbers, ObserverFailed, observe, reduced
from pipeline.training.places import places_of
from pipeline.training.step import StepReport
from pipeline.training.trial import Entry, Measure, OpenTrial


def speed(trial: OpenTrial, entry: Entry) -> None:
    """Times and throughput since the last entry, and the memory used so far."""
    entry.metrics |= trial.window.read()
    if (memory := peak_memory_mib(trial.device)) is not None:
        entry.metrics[measures.PEAK_MEMORY_MIB] = memory


def progress(trial: OpenTrial, entry: Entry) -> None:
    """How far training is, and at which rates."""
    entry.metrics[measures.EPOCH] = float(entry.epoch)
    if isinstance(trial.loader, SequentialLoader):
        entry.metrics[measures.TASK_NUMBER] = float(trial.loader.task_at(entry.step) + 1)
    entry.metrics[measures.LEARNING_RATE], entry.metrics[measures.ROUTER_LEARNING_RATE] = entry.rates
    if trial.training.on_nonfinite == "skip":
        entry.metrics[measures.SKIPPED_STEPS] = float(trial.skipped.steps)


def training_step(trial: OpenTrial, entry: Entry) -> None:
    """The step's losses, gradient norm and routing health."""
    entry.metrics |= step_metrics(entry.report, entry.evaluated, trial.dynamics.cost is not None)


def scores(trial: OpenTrial, entry: Entry) -> None:
    """The held-out tasks where the step is evaluated; the evaluation tasks then or at the end, as is set."""
    if entry.evaluated:
        entry.metrics |= _scores(trial, trial.held_out, "held_out", patterns=entry.last)
    if trial.evaluation and (entry.last or (entry.evaluated and trial.training.score_evaluation == "always")):
        entry.metrics |= _scores(trial, trial.evaluation, "evaluation")


def forgetting(trial: OpenTrial, entry: Entry) -> None:
    """Where training goes task after task: the loss on earlier tasks, and by how much it has grown since each."""
    if entry.evaluated and trial.forgetting:
        entry.metrics |= trial.forgetting.metrics(trial.model, entry.step)


def decoded(trial: OpenTrial, entry: Entry) -> None:
    """At the end, what the task draws: what it measures of that, and the examples of held-out rows themselves."""
    if entry.last and (examples := trial.task.examples) is not None:
        entry.examples = _drawn(trial, examples, trial.held_out)
        entry.metrics |= _measured(examples, entry.examples, "held_out")
        entry.metrics |= _measured(examples, _drawn(trial, examples, trial.evaluation), "evaluation")


def observed(trial: OpenTrial, entry: Entry) -> None:
    """What the user's own observer finds, if there is one; the workers exchange it."""
    name = trial.training.observer
    if trial.observer is None or name is None:
        return
    numbers: Numbers | ObserverFailed
    try:
        health = entry.report.dynamics.health or {}
        draw = trial.rank == 0
        numbers, figures = observe(trial.observer, entry.step, trial.model, entry.batch, health, draw=draw)
        entry.figures = figures if draw else {}
    except ObserverFailed as failed:
        numbers = failed
    entry.metrics |= reduced(name, entry.step, numbers, trial.device)


MEASURES: tuple[Measure, ...] = (speed, progress, training_step, scores, forgetting, observed, decoded)
PHASE_OF: dict[Measure, str] = {speed: "steps", scores: "evaluation", forgetting: "evaluation", decoded: "decoding"}
"""As what the time of a measure counts where that is not the extra time of logging; see `pipeline.records.phases`.
The first one waits for the device, which may still be at work on steps."""


def step_metrics(report: StepReport, by_module: bool, has_goodness: bool) -> dict[str, float]:
    """The step's metrics; those of single modules, most of all there are, only where asked for.

    What came to nothing in this step is NaN, or what an earlier step came to would pass for the last. What an arm
    without Goodness never has is left out.
    """
    there = [metric for metric in measures.METRICS if has_goodness or not metric.of_goodness]
    metrics = {metric.name: metric.of_step(report.dynamics) for metric in there if metric.of_step is not None}
    layers: dict[tuple[str, int], list[float]] = {}
    places = places_of(report.dynamics.health or {})
    for name, health in (report.dynamics.health or {}).items():
        layer, projection = places[name]
        known = health.measures()
        for metric in there:
            if metric.name not in known and metric.of_module is None:
                continue
            value = known[metric.name] if metric.of_module is None else metric.of_module(health)
            if by_module:
                metrics[measures.by_module(metric.name, layer, projection)] = value
            layers.setdefault((metric.name, layer), []).append(value)
    for (measure, layer), values in layers.items():
        finite = [value for value in values if math.isfinite(value)]
        metrics[measures.by_layer(measure, layer)] = statistics.fmean(finite) if finite else math.nan
    return metrics


def _scores(trial: OpenTrial, rows: list[Sequence], split: Split, patterns: bool = False) -> dict[str, float]:
    budget, place = trial.loader.budget, (trial.rank, trial.world_size)
    return evaluate(
        trial.model, rows, budget, *place, autocast=trial.autocast, patterns=patterns, split=split, task=trial.task
    )


def _drawn(trial: OpenTrial, examples: Examples, judged: list[Sequence]) -> list[dict[str, Any]]:
    """Examples of the rows that the task chooses, which are the same for every trial on this data.

    Every worker takes its share, and gets all.
    """
    rows, world_size = examples.choose(judged, trial.training.decode_tasks), trial.world_size
    with together(trial.device) as alive, in_evaluation_mode(trial.model):
        mine = examples.draw(trial.model, rows[trial.rank :: world_size], trial.experiment, alive)
    shares = gather_json(mine, trial.device)
    return [shares[place % world_size][place // world_size] for place in range(len(rows))]


def _measured(examples: Examples, drawn: list[dict[str, Any]], split: Split) -> dict[str, float]:
    return {f"{split}/{name}": value for name, value in examples.measure(drawn).items()} if drawn else {}
