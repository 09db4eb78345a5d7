"""What the commands do, as functions: for a notebook, or a program of one's own.

    from pipeline.api import ablate

    outcome = ablate("experiments/smoke.yaml", changes={"training.steps": 40}, output="runs")
    outcome.results()

Importing this takes a moment; torch, Ray and MLflow are imported by what needs them. The functions can be called from
any thread, and where an event loop runs.
"""

# ruff: noqa: E402 - the check comes before the imports that would fail
from pipeline.extra import require_pipeline

require_pipeline("pipeline.api")

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.api_models import load_model, predict, routing_map
from pipeline.api_reports import compare, local_store, report, results
from pipeline.layout import Output
from pipeline.renamed import takes_old_names
from pipeline.settings.changes import check_changes, command_words
from pipeline.tracking.destination import EXPERIMENT

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.data.manifest import Prepared
    from pipeline.planning.forecast import Forecast
    from pipeline.run import Outcome
    from pipeline.running.run_options import RunOptions
    from pipeline.settings.config import Experiment
    from pipeline.settings.experiment_file import Expanded

__all__ = [
    "ablate",
    "compare",
    "load_model",
    "local_store",
    "plan",
    "predict",
    "prepare",
    "read",
    "report",
    "results",
    "routing_map",
    "train",
]

Changes = Mapping[str, Any]


@takes_old_names
def ablate(
    config: str | Path,
    changes: Changes | None = None,
    output: str | Path = "runs",
    *,
    scale: str | None = None,
    resume: bool = True,
    address: str | None = None,
    tracking_uri: str | None = None,
    mlflow_experiment: str = EXPERIMENT,
    allow_offline_tracking: bool = False,
    accept_changed_code: bool = False,
    storage: str | None = None,
    verbose: bool = False,
    console: "Console | None" = None,
) -> "Outcome":
    """Runs the sweep of a YAML file, arms x seeds x what else it varies, then prints and files its report.

    A call that is made again goes on where the last one stopped, and repeats no trial that has ended. With more seeds,
    arms, values of the grid or samples than before it runs those; with more steps, where `training.schedule` is
    constant, each trial goes on for them.

    Args:
        changes: settings to replace, by their dotted names, for example {"training.steps": 40}, or some of a group:
            {"model": {"layers": 4}}.
        output: the folder for everything that is written.
        scale: one of the file's `scales`; `changes` go on top of it.
        resume: False refuses a sweep that has been started before.
        address: host:port of a Ray cluster; this machine alone by default.
        tracking_uri: MLflow's store; a SQLite file in `output` by default.
        allow_offline_tracking: start even if the store does not answer.
        accept_changed_code: go on though your own code, such as an arm's module, has changed since the sweep was last
            run; the report then says so.
        storage: where data, checkpoints and the sweep's state lie that all machines reach, as a path or URI; `output`
            then holds copies, and may be empty at first.

    Returns:
        How it ended, also where trials failed (`exit_code` 1, the reasons in `ended.failures`) or Ctrl-C, a notebook's
        stop button, stopped it (130): a loop over calls has to look at `exit_code`.

    Raises:
        UserError: something was refused before anything started.
    """
    from pipeline.run import run
    from pipeline.settings.trials import check_sweep

    read = _read(config, changes, scale)
    check_sweep(read.experiment, str(config))
    options = _options(
        command_words("ablate", config, changes, scale, output),
        output,
        tracking_uri,
        mlflow_experiment,
        console,
        resume=resume,
        address=address,
        allow_offline_tracking=allow_offline_tracking,
        accept_changed_code=accept_changed_code,
        storage=storage,
        verbose=verbose,
    )
    return run(read.experiment, read.trials, options)


@takes_old_names
def train(
    config: str | Path,
    changes: Changes | None = None,
    output: str | Path = "runs",
    *,
    scale: str | None = None,
    resume: bool = True,
    address: str | None = None,
    tracking_uri: str | None = None,
    mlflow_experiment: str = EXPERIMENT,
    allow_offline_tracking: bool = False,
    accept_changed_code: bool = False,
    storage: str | None = None,
    verbose: bool = False,
    console: "Console | None" = None,
) -> "Outcome":
    """Trains one model: a YAML file without its `sweep` section. Otherwise as `ablate`."""
    from pipeline.run import run
    from pipeline.settings.config import replace
    from pipeline.settings.trials import every_trial

    experiment = replace(read(config, changes, scale), {"sweep": None}, str(config))
    options = _options(
        command_words("train", config, changes, scale, output),
        output,
        tracking_uri,
        mlflow_experiment,
        console,
        resume=resume,
        address=address,
        allow_offline_tracking=allow_offline_tracking,
        accept_changed_code=accept_changed_code,
        storage=storage,
        verbose=verbose,
    )
    return run(experiment, every_trial(experiment), options)


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
        UserError: `ablate` would refuse it, or the cluster cannot hold it; names the field, or what there is too little
            of.
    """
    from pipeline.planning.plan import forecast

    read = _read(config, changes, scale)
    return forecast(read.experiment, read.trials, Path(output), address, calibrate, console, show)


def prepare(
    config: str | Path,
    changes: Changes | None = None,
    output: str | Path = "runs",
    *,
    scale: str | None = None,
    storage: str | None = None,
    console: "Console | None" = None,
) -> "Prepared":
    """Turns the data into Parquet shards, as the file's `data` section says; in `storage`, where one is named."""
    from pipeline.data.preparing import prepare_and_report
    from pipeline.storage.opening import checked_storage

    experiment, place = read(config, changes, scale), checked_storage(storage)
    return prepare_and_report(experiment.data, Output(Path(output)).data, console, place and place / "data")


def read(config: str | Path, changes: Changes | None = None, scale: str | None = None) -> "Experiment":
    """The experiment in a YAML file, at one of its scales and with settings replaced.

    Args:
        config: the file; or, where there is no such file, the name of an experiment that comes with the package, such
            as "ablation".

    Raises:
        UserError: names every problem.
    """
    return _read(config, changes, scale).experiment


def _read(config: str | Path, changes: Changes | None, scale: str | None) -> "Expanded":
    from pipeline.settings.experiment_file import read_changed
    from pipeline.settings.shipped import find_experiment

    check_changes(changes)
    return read_changed(find_experiment(config), changes or {}, scale, str(config))


def _options(
    words: list[str],
    output: str | Path,
    tracking_uri: str | None,
    mlflow_experiment: str,
    console: "Console | None",
    *,
    address: str | None,
    storage: str | None,
    **flags: bool,
) -> "RunOptions":
    """The options of a command that begins with `words`."""
    import click
    from rich.console import Console

    from pipeline.records.phases import Clock, process_start
    from pipeline.run import command_line
    from pipeline.running.run_options import RunOptions
    from pipeline.tracking.destination import Destination

    destination = Destination(tracking_uri or None, mlflow_experiment)
    return RunOptions(
        output=Output(Path(output)),
        command=command_line(words, destination, address, storage),
        address=address,
        destination=destination,
        storage=storage,
        console=console or Console(),
        clock=Clock("command", process_start() if click.get_current_context(silent=True) else None),
        **flags,
    )
