"""What the runs of a sweep ended with, read from MLflow alone."""

import math
import re
import statistics
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import measures
from pipeline.errors import UserError
from pipeline.reporting.baselines import order_of_arms
from pipeline.settings.growth import WORKERS
from pipeline.tracking.describe import ARM, DAMAGED, PRUNED, ROLE, SEED, SWEEP, TRIAL, params_of
from pipeline.tracking.find_runs import all_runs, runs_of_sweep
from pipeline.tracking.mlflow_run import GROWN
from pipeline.tracking.store import find_experiment, open_store, plain, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Curve = tuple[list[int], list[float]]  # steps and values
_CURVES = (
    *(measures.TASK_LOSS, measures.HELD_OUT_LOSS, measures.HELD_OUT_TOKEN_ACCURACY, measures.STEP_SECONDS),
    *(measures.FORGETTING_LOSS, measures.FORGETTING_INCREASE),
)
_LAYER = re.compile(rf"{measures.ACTIVATION_RATE}/L(\d+)")
NOT_SET = "–"  # a setting that some trials have and others have not
_NOT_A_CELL = ("training.arm", "training.seed", ARM, SEED, "description")


@dataclass(frozen=True)
class TrialResult:
    """One finished run. `metrics` are last logged values; `curves` some of them over the run, by name."""

    run_id: str
    arm: str
    seed: int
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    curves: dict[str, Curve]

    @property
    def activation(self) -> dict[int, Curve]:
        """The activation rate of each layer over the run."""
        return {int(match[1]): curve for name, curve in self.curves.items() if (match := _LAYER.fullmatch(name))}

    @property
    def held_out_loss(self) -> float:
        """The last held-out loss, in nats per labelled token; NaN when there is none."""
        return self.last(measures.HELD_OUT_LOSS)

    @property
    def density(self) -> float:
        """The part of the experts that a held-out token activates, mean over modules, at the last evaluation.

        Of runs from before it was measured, the mean over layers of the last logged training batch's activation rate.
        """
        measured = self.last(measures.DENSITY)
        return self.over_layers(measures.ACTIVATION_RATE) if math.isnan(measured) else measured

    @property
    def step_seconds(self) -> float:
        """The median step time over the run; NaN when there is none."""
        _, seconds = self.curves.get(measures.STEP_SECONDS, ([], []))
        return statistics.median(seconds) if seconds else math.nan

    @property
    def layers(self) -> list[int]:
        """The layers that were measured."""
        return sorted(self.activation)

    def last(self, metric: str) -> float:
        """The last value of a metric; NaN when there is none."""
        return self.metrics.get(metric, math.nan)

    def over_layers(self, measure: str) -> float:
        """A health measure's mean over the layers; NaN when it is missing for any."""
        values = [self.last(measures.by_layer(measure, layer)) for layer in self.layers]
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Row:
    """The trials of an arm in one cell of the grid, by seed."""

    arm: str
    cell: tuple[tuple[str, str], ...]
    trials: dict[int, TrialResult] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """A sweep as it stands in the tracker. `statuses` counts all its trials, `older` those repeated since.

    A pruned trial counts as PRUNED, not as FINISHED: it is in no row; nor is a DAMAGED one, whose metrics end before
    the trial did. `about`: what the sweep was said to be for before it ran: `description`, and of a study its
    `question`, `expectation`, ... `unfinished` are the trials that have neither finished nor been pruned.
    `data`: name and profile, as MLflow has them, of each data set that a finished trial was trained on.
    `own`: settings in which arms differ, and the trials of one arm do not, by arm; they are of the arm and no cell.
    `summary`: the id of the newest run that holds the sweep's report and its settings.
    """

    sweep: str
    rows: list[Row]
    statuses: dict[str, int]
    older: int
    varying: list[str]
    about: dict[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()
    data: tuple[tuple[str, str], ...] = ()
    own: dict[str, dict[str, str]] = field(default_factory=dict)
    summary: str | None = None

    @property
    def finished(self) -> int:
        """How many trials have finished."""
        return self.statuses.get("FINISHED", 0)

    @property
    def pruned(self) -> int:
        """How many trials were ended early."""
        return self.statuses.get("PRUNED", 0)

    @property
    def total(self) -> int:
        """How many trials there are runs of."""
        return sum(self.statuses.values())

    def row(self, arm: str, cell: tuple[tuple[str, str], ...]) -> Row | None:
        """The row of an arm in a cell, if any trial of it has finished."""
        return next((row for row in self.rows if row.arm == arm and row.cell == cell), None)


def read_results(uri: str, experiment_name: str, sweep: str, sweep_id: str | None = None) -> Results:
    """The newest run of each trial of the sweep; of those, the finished ones make the rows.

    An older run that has finished never stands in for a newer one that has not.

    Args:
        sweep_id: of several sweeps of that name, which; "" for the runs without an id.

    Raises:
        UserError: the store cannot be used, or has no such experiment, or no trial of the sweep; or several sweeps of
            that name, and no `sweep_id` is given.
    """
    client = open_store(uri, create=False)
    with store_errors(uri):
        return _read(client, experiment_name, sweep, sweep_id)


def _read(client: "MlflowClient", experiment_name: str, sweep: str, sweep_id: str | None) -> Results:
    experiment_id = find_experiment(client, experiment_name)
    everything = all_runs(client, experiment_id)
    runs = [r for r in everything if r.data.tags.get(ROLE) == "trial"]
    of_sweep = runs_of_sweep(everything, sweep, sweep_id)
    mine = [run for run in of_sweep if run.data.tags.get(ROLE) == "trial"]
    if not mine:
        known = ", ".join(sorted({run.data.tags.get(SWEEP, "") for run in runs})) or "none"
        raise UserError(f"experiment {experiment_name!r} has no trial of a sweep {sweep!r}; there are: {known}.")
    newest: dict[str, Run] = {}
    for run in sorted(mine, key=lambda run: run.info.start_time):
        newest[run.data.tags.get(TRIAL, run.info.run_id)] = run
    statuses: dict[str, int] = {}
    for run in newest.values():
        statuses[_status(run)] = statuses.get(_status(run), 0) + 1
    trials = [_trial(client, run) for run in newest.values() if _status(run) == "FINISHED"]
    params = [(run.data.tags.get(ARM, ""), _params(run)) for run in newest.values()]
    varying, own = _varying(params)
    varying = _without_resumed_workers(varying, list(newest.values()))
    rows: dict[Any, Row] = {}
    for trial in sorted(trials, key=lambda t: (order_of_arms(t.arm), t.seed)):
        cell = tuple((name, trial.params.get(name, NOT_SET)) for name in varying)
        rows.setdefault((cell, trial.arm), Row(trial.arm, cell)).trials[trial.seed] = trial
    ordered = sorted(rows.values(), key=lambda row: ([_natural(v) for _, v in row.cell], order_of_arms(row.arm)))
    summaries = [run for run in of_sweep if run.data.tags.get(ROLE) == "summary"]
    unfinished = sorted(plain(key) for key, run in newest.items() if _status(run) not in ("FINISHED", "PRUNED"))
    older = len(mine) - len(newest)
    finished = [run for run in newest.values() if _status(run) == "FINISHED"]
    about, data = _about(summaries), tuple(dict.fromkeys(each for run in finished for each in _data(run)))
    summary = max(summaries, key=lambda run: run.info.start_time).info.run_id if summaries else None
    return Results(sweep, ordered, statuses, older, varying, about, tuple(unfinished), data, own, summary)


def _data(run: "Run") -> list[tuple[str, str]]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return [(each.dataset.name, each.dataset.profile or "") for each in inputs]


def _about(summaries: "list[Run]") -> dict[str, str]:
    params = max(summaries, key=lambda run: run.info.start_time).data.params if summaries else {}
    study = {name.removeprefix("study."): text for name, text in params.items() if name.startswith("study.")}
    texts = {**({"description": params["description"]} if params.get("description") else {}), **study}
    tags = max(summaries, key=lambda run: run.info.start_time).data.tags if summaries else {}
    texts |= {GROWN: tags[GROWN]} if tags.get(GROWN) else {}
    return {name: plain(text) for name, text in texts.items()}


def _trial(client: "MlflowClient", run: "Run") -> TrialResult:
    recorded = sorted(run.data.metrics, key=lambda name: name not in measures.RENAMED)  # today's names are taken last
    names = {measures.current_name(name): name for name in recorded}
    drawn = [name for name in names if name in _CURVES or _LAYER.fullmatch(name)]
    return TrialResult(
        run_id=run.info.run_id,
        arm=plain(run.data.tags[ARM]),
        seed=int(run.data.tags[SEED]),
        params=_params(run),
        tags={name: plain(value) for name, value in run.data.tags.items()},
        metrics={name: _as_logged(run.data.metrics[names[name]]) for name in names},
        curves={name: _history(client, run.info.run_id, names[name]) for name in drawn},
    )


def _history(client: "MlflowClient", run_id: str, name: str) -> Curve:
    points = {point.step: _as_logged(point.value) for point in client.get_metric_history(run_id, name)}
    return sorted(points), [points[step] for step in sorted(points)]


def _as_logged(value: float) -> float:
    """MLflow keeps an infinity as the largest number, which must win no comparison."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def _varying(params: list[tuple[str, dict[str, str]]]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The settings, but for arm and seed, in which trials differ: the grid of the sweep, and what was sampled.

    Apart from them, by arm, what only tells arms apart (`sweep.arm_settings`): a grid gives every arm each of its
    values, so that what each arm has one value of is no grid. `params` are (arm, settings) of every trial.
    """
    names = sorted({name for _, each in params for name in each})
    different = [name for name in names if len({each.get(name, NOT_SET) for _, each in params}) > 1]
    values = {name: {(arm, each.get(name, NOT_SET)) for arm, each in params} for name in different}
    arms = {arm for arm, _ in params}
    owned = [name for name in different if len(values[name]) == len(arms)]
    own = {arm: {name: dict(values[name])[arm] for name in owned} for arm in sorted(arms)} if owned else {}
    return [name for name in different if name not in owned], own


def _without_resumed_workers(varying: list[str], runs: "list[Run]") -> list[str]:
    """Without workers.count, unless it tells trials of one arm and seed apart, as a grid of it does: a sweep that was
    resumed with another count has one trial of each all the same, which stay one row."""
    others = [name for name in varying if name != WORKERS]
    cells = {
        (run.data.tags.get(ARM), run.data.tags.get(SEED), *(_params(run).get(name, NOT_SET) for name in others))
        for run in runs
    }
    return others if len(cells) == len(runs) else varying


def _params(run: "Run") -> dict[str, str]:
    return {name: plain(value) for name, value in params_of(run).items() if name not in _NOT_A_CELL}


def _status(run: "Run") -> str:
    if run.info.status != "FINISHED":
        return str(run.info.status)
    return "DAMAGED" if DAMAGED in run.data.tags else "PRUNED" if PRUNED in run.data.tags else "FINISHED"


def _natural(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return math.inf, value
