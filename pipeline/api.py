"""What the commands do, as functions: for a notebook, or a program of one's own.

    from pipeline.api import ablate

    outcome = ablate("experiments/smoke.yaml", changes={"training.steps": 40}, output="runs")
    outcome.results()

Importing this takes a moment; torch, Ray and MLflow are imported by what needs them. The functions can be called from
any thread, and where an event loop runs.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.layout import Output

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

    from pipeline.config import Experiment, Trial
    from pipeline.destination import Destination
    from pipeline.forecast import Forecast
    from pipeline.manifest import Prepared
    from pipeline.report import Report
    from pipeline.sweep import SweepOutcome

MLFLOW_EXPERIMENT = "tiny-onn"
Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a run or a sweep ended, and the way to what it found."""

    name: str
    output: Path
    ended: "SweepOutcome"
    trials: "tuple[Trial, ...]" = field(repr=False)
    tracking_uri: str | None = None
    mlflow_experiment: str = MLFLOW_EXPERIMENT

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return self.ended.exit_code

    def results(self) -> "DataFrame":
        """A row for each finished trial: arm, seed, what else varies, and the report's columns."""
        from pipeline.frames import results_frame
        from pipeline.results import read_results

        uri = self.tracking_uri or Output(self.output).tracking_uri
        return results_frame(read_results(uri, self.mlflow_experiment, self.name))

    def curves(self, metric: str = "train/task_loss") -> "DataFrame":
        """A metric over the steps, a column for each trial; NaN where a trial has not measured it.

        Raises:
            UserError: no trial has measured it; names the metrics that there are.
        """
        from pipeline.frames import curves_frame

        spools = {trial.key: Output(self.output).trial(self.name, trial.key).spool for trial in self.trials}
        return curves_frame(spools, metric)


def ablate(
    config: str | Path,
    changes: Changes | None = None,
    output: str | Path = "runs",
    *,
    scale: str | None = None,
    resume: bool = True,
    address: str | None = None,
    tracking_uri: str | None = None,
    mlflow_experiment: str = MLFLOW_EXPERIMENT,
    track_later: bool = False,
    storage: str | None = None,
    verbose: bool = False,
    console: "Console | None" = None,
) -> Outcome:
    """Runs the sweep of a YAML file, arms x seeds x what else it varies, then prints and files its report.

    A call that is made again goes on where the last one stopped, and repeats no trial that has ended.

    Args:
        changes: settings to replace, by their dotted names, for example {"training.steps": 40}.
        output: the folder for everything that is written.
        scale: one of the file's `scales`; `changes` go on top of it.
        resume: False refuses a sweep that has been started before.
        address: host:port of a Ray cluster; this machine alone by default.
        tracking_uri: MLflow's store; a SQLite file in `output` by default.
        track_later: start even if the store does not answer.
        storage: where data, checkpoints and the sweep's state lie that all machines reach, as a path or URI; `output`
            then holds copies, and may be empty at first.

    Raises:
        UserError: something was refused before anything started.
    """
    from pipeline.config import trials_of
    from pipeline.destination import Destination

    experiment = read(config, changes, scale)
    words = _words("ablate", config, changes, scale, output)
    destination = Destination(tracking_uri or None, mlflow_experiment)
    trials = trials_of(experiment, str(config))
    return _run(
        experiment, trials, Path(output), words, resume, address, destination, track_later, storage, verbose, console
    )


def train(
    config: str | Path,
    changes: Changes | None = None,
    output: str | Path = "runs",
    *,
    scale: str | None = None,
    resume: bool = True,
    address: str | None = None,
    tracking_uri: str | None = None,
    mlflow_experiment: str = MLFLOW_EXPERIMENT,
    track_later: bool = False,
    storage: str | None = None,
    verbose: bool = False,
    console: "Console | None" = None,
) -> Outcome:
    """Trains one model: a YAML file without its `sweep` section. Otherwise as `ablate`."""
    from pipeline.config import Trial, replace, trial_key
    from pipeline.destination import Destination

    experiment = replace(read(config, changes, scale), {"sweep": None}, str(config))
    words = _words("train", config, changes, scale, output)
    destination = Destination(tracking_uri or None, mlflow_experiment)
    key = trial_key(experiment.training.arm, experiment.training.seed)
    trials = (Trial(key=key, experiment=experiment),)
    return _run(
        experiment, trials, Path(output), words, resume, address, destination, track_later, storage, verbose, console
    )


def plan(
    config: str | Path,
    changes: Changes | None = None,
    output: str | Path = "runs",
    *,
    scale: str | None = None,
    address: str | None = None,
    calibrate: bool = True,
    console: "Console | None" = None,
    show: bool = True,
) -> "Forecast":
    """What `ablate` would run (`train`, where the file has no sweep), and what it would take; prints it.

    The data set is prepared if it is not there yet; else nothing is written, and nothing started.

    Args:
        calibrate: times a few steps of each kind of trial on this machine, in processes of their own.
        show: whether to print it.

    Raises:
        UserError: the cluster cannot hold it; names the field, or what there is too little of.
    """
    from rich.console import Console
    from rich.progress import Progress

    from pipeline import forecast as forecasting
    from pipeline.calibration import timed
    from pipeline.cluster import connect, local_resources
    from pipeline.config import Trial, trial_key, trials_of
    from pipeline.forecast_view import print_forecast
    from pipeline.preflight import check_data, check_start
    from pipeline.preparing import prepare_and_tell
    from pipeline.storage import location

    experiment = read(config, changes, scale)
    key = trial_key(experiment.training.arm, experiment.training.seed)
    trials = trials_of(experiment, str(config)) if experiment.sweep else (Trial(key=key, experiment=experiment),)
    where, console = Output(Path(output)), console or Console()
    left = [trial for trial in trials if not where.trial(experiment.name, trial.key).ended]
    check_start(left, where.root, address)
    nodes: tuple[Any, ...] = (local_resources(),)
    memory, whose = forecasting.machine_memory(), "this machine"
    if address is not None:
        with connect(address) as cluster:
            nodes, memory, whose = cluster.nodes, forecasting.cluster_memory(), "the cluster"
    sweep = experiment.sweep
    together = forecasting.at_once(left, nodes, sweep.max_concurrent if sweep else None)
    prepared = prepare_and_tell(experiment.data, where.data, console if show else Console(quiet=True))
    check_data(left, prepared)
    kinds = forecasting.kinds_of(left, prepared)
    if calibrate and kinds:
        alone = address is not None or any(kind.example.workers.gpus for kind in kinds)
        side_by_side = 1 if alone else together * max(kind.example.workers.count for kind in kinds)
        side_by_side = min(side_by_side, math.ceil(local_resources().cpus))
        with Progress(console=console, transient=True, disable=console.is_jupyter) as progress:
            bar = progress.add_task("Timing a few steps of each kind", total=None)
            kinds = timed(
                kinds,
                Path(location(prepared.folder)),
                side_by_side,
                lambda done, total: progress.update(bar, completed=done, total=total),
            )
        forecasting.check_memory(kinds, together, memory, whose)
    found = forecasting.Forecast(
        name=experiment.name,
        kinds=kinds,
        order=tuple(trial.key for trial in left),
        ended=len(trials) - len(left),
        at_once=together,
        nodes=nodes,
        free_disk_bytes=forecasting.free_disk(where.root),
        prunes=bool(sweep and sweep.scheduler),
    )
    if show:
        print_forecast(found, console, "on this machine" + ("" if address is None else ", not on the cluster"))
    return found


def prepare(
    config: str | Path,
    changes: Changes | None = None,
    output: str | Path = "runs",
    *,
    scale: str | None = None,
    storage: str | None = None,
    console: "Console | None" = None,
) -> "Prepared":
    """Turns ARC tasks into Parquet shards, as the file's `data` section says; in `storage`, where one is named."""
    from pipeline.preparing import prepare_and_tell
    from pipeline.storage import checked_storage

    experiment, place = read(config, changes, scale), checked_storage(storage)
    return prepare_and_tell(experiment.data, Output(Path(output)).data, console, place and place / "data")


def report(
    sweep: str,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    mlflow_experiment: str = MLFLOW_EXPERIMENT,
    console: "Console | None" = None,
    file: bool = True,
) -> "Report":
    """Makes the report of a sweep from MLflow alone, prints it, and writes it to the output folder.

    Args:
        file: also files it on the sweep's summary run in MLflow, in the place of an older one.

    Raises:
        UserError: the store cannot be used, or has no trial of the sweep.
    """
    from pipeline.config import check_name

    check_name(sweep, "SWEEP")
    uri = tracking_uri or local_store(Path(output), sweep)
    made, paths = file_report(uri, mlflow_experiment, sweep, Path(output), console)
    if file:
        from pipeline.filing import file_on_summary

        file_on_summary(uri, mlflow_experiment, sweep, paths)
    return made


def read(config: str | Path, changes: Changes | None = None, scale: str | None = None) -> "Experiment":
    """The experiment in a YAML file, at one of its scales and with settings replaced.

    Raises:
        UserError: names every problem.
    """
    from pipeline.config import at_scale, read_experiment, replace

    experiment = read_experiment(Path(config))
    if scale is not None:
        experiment = at_scale(experiment, scale, str(config))
    return replace(experiment, dict(changes), f"{config} with --set") if changes else experiment


def local_store(output: Path, sweep: str) -> str:
    """The MLflow store in an output folder.

    Raises:
        UserError: there is none.
    """
    if not (output / "mlflow.db").exists():
        raise UserError(
            f"--output {output}: holds no mlflow.db. Run {sweep} there first (tiny-onn ablate ... --output {output}), "
            "or name a store with --tracking-uri."
        )
    return Output(output).tracking_uri


def file_report(
    uri: str, mlflow_experiment: str, sweep: str, output: Path, console: "Console | None" = None
) -> "tuple[Report, list[Path]]":
    """The report of a sweep in the store at `uri`, printed and written to the output folder; and its files."""
    from rich.console import Console

    from pipeline.report import make_report, print_report, write_report

    made = make_report(uri, mlflow_experiment, sweep)
    files = write_report(made, Output(output).sweep(sweep) / "report")
    console = console or Console()
    print_report(made, console)
    page = next(path for path in files if path.suffix == ".html")
    console.print(f"Report: {files[0]}\nTo look at, in any browser: {page}", highlight=False, soft_wrap=True)
    return made, files


def _run(
    experiment: "Experiment",
    trials: "tuple[Trial, ...]",
    output: Path,
    words: list[str],
    resume: bool,
    address: str | None,
    destination: "Destination",
    track_later: bool,
    storage: str | None,
    verbose: bool,
    console: "Console | None",
) -> Outcome:
    from contextlib import nullcontext

    from rich.console import Console

    from pipeline.preflight import check_data, check_start, open_tracker
    from pipeline.preparing import prepare_and_tell
    from pipeline.remote_sweep import RemoteSweep
    from pipeline.storage import checked_storage
    from pipeline.sweep import run_sweep
    from pipeline.worker import train_fn_per_worker

    where, console = Output(output), console or Console()
    place = checked_storage(storage)
    folders = {trial.key: where.trial(experiment.name, trial.key) for trial in trials}
    sweep = where.sweep(experiment.name)
    with RemoteSweep(place / "sweeps" / experiment.name, sweep, folders) if place else nullcontext() as shared:
        left = [trial for trial in trials if not folders[trial.key].ended]
        check_start(left, output, address)
        tracker = open_tracker(destination, where, track_later, console)
        prepared = prepare_and_tell(experiment.data, where.data, console, place and place / "data")
        check_data(left, prepared)
        uri = destination.store(where)[0]
        words = [*words, *destination.options(), *(["--address", address] if address else [])]
        words += ["--storage", place.public] if place else []
        ended = run_sweep(
            experiment,
            trials,
            where,
            prepared,
            train_fn=train_fn_per_worker,
            resume=resume,
            tracker=tracker,
            address=address,
            verbose=verbose,
            console=console,
            command=destination.command(words),
            report=lambda: file_report(uri, destination.experiment, experiment.name, output, console)[1],
            destination=destination,
            shared=shared,
        )
    return Outcome(experiment.name, output, ended, trials, destination.uri, destination.experiment)


def _words(name: str, config: str | Path, changes: Changes | None, scale: str | None, output: str | Path) -> list[str]:
    """The words of the command that does the same as a call."""
    words = ["tiny-onn", name, str(config), *(["--scale", scale] if scale else [])]
    for setting, value in (changes or {}).items():
        words += ["--set", f"{setting}={value if isinstance(value, str) else json.dumps(value)}"]
    return [*words, "--output", str(output)]
