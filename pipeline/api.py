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

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.renamed import takes_old_names
from pipeline.settings.changes import check_changes, command_words
from pipeline.tracking.destination import EXPERIMENT

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.console import Console

    from pipeline.data.manifest import Prepared
    from pipeline.planning.forecast import Forecast
    from pipeline.reporting.report import Report
    from pipeline.reporting.results import Results
    from pipeline.run import Outcome
    from pipeline.running.run_options import RunOptions
    from pipeline.settings.config import Experiment
    from pipeline.settings.experiment_file import Expanded
    from pipeline.training.answers import Answers
    from pipeline.training.kept import Step
    from pipeline.training.model_file import TrainedModel

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
    arms, values of the grid or draws than before it runs those; with more steps, where `training.schedule` is constant,
    each trial goes on for them.

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


def report(
    sweep: str,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    mlflow_experiment: str = EXPERIMENT,
    console: "Console | None" = None,
    file: bool = True,
    sweep_id: str | None = None,
) -> "Report":
    """Makes the report of a sweep from MLflow alone, prints it, and writes it to the output folder.

    Args:
        file: also files it on the sweep's summary run in MLflow, in the place of an older one.
        sweep: its name; or its id, or NAME@ID, where others have the name. An id's first digits will do.
        sweep_id: of several sweeps of that name, which ("none": that whose runs have no id). By default the one whose
            record lies in the output folder, or beside the store; without a record, the only one that there is.

    Raises:
        UserError: the store cannot be used, has no trial of the sweep, or has several sweeps of that name or id.
    """
    from pipeline.run import file_report

    uri, sweep, wanted = _find_sweep(sweep, output, tracking_uri, mlflow_experiment, sweep_id)
    made, paths = file_report(uri, mlflow_experiment, sweep, Path(output), console, wanted)
    if file:
        from pipeline.tracking.file_report import file_report_on_summary
        from pipeline.tracking.moved import correct_paths
        from pipeline.tracking.store import sqlite_file

        if database := sqlite_file(uri):
            correct_paths(database)
        file_report_on_summary(uri, mlflow_experiment, sweep, paths, wanted)
    return made


def predict(
    run: str | Path,
    file: str | Path,
    submission: str | Path | None = None,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    step: "Step" = "last",
    own_code: bool = False,
) -> "Answers":
    """Draws two attempts at each test pair of the tasks in a file, in any of the formats that `data.folder` takes.

    Args:
        run, step, own_code: as in `load_model`.
        submission: where to write them in the format of Kaggle's ARC competitions; nowhere by default.

    Raises:
        UserError: there is no such model or task, or the submission cannot be written.
    """
    import torch

    from pipeline.training.answers import answer_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model_of(run, output, tracking_uri, step, device, own_code)
    return answer_file(model, Path(file), None if submission is None else Path(submission))


def load_model(
    run: str | Path,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    step: "Step" = "last",
    device: str = "cpu",
    own_code: bool = False,
) -> "TrainedModel":
    """The model of a run: as it ended, at its best by held-out loss, or at any step whose checkpoint is kept.

    Args:
        run: the id of a finished run in MLflow; or the path of a trial's folder, or of a model's.
        output: where the run's checkpoints lie, for steps that MLflow does not have.
        step: "last", "best", or a number.
        own_code: of a model that names code, `model.build`, a task, an arm or a part of your own: import it, and so run
            it. Whoever can write to the store or the folder chooses what is named.

    Raises:
        UserError: there is no such run, or no model of this step; names the steps that there are. Or the model names
            code, and `own_code` is not set.
    """
    return _model_of(run, output, tracking_uri, step, device, own_code)


def _model_of(
    run: str | Path, output: str | Path, tracking_uri: str | None, step: "Step", device: str, own_code: bool
) -> "TrainedModel":
    from pipeline.layout import TrialFolder
    from pipeline.tracking.load_model import load_model as load_logged
    from pipeline.training.kept import open_step
    from pipeline.training.model_file import is_model, open_model

    if not Path(run).is_dir():
        uri = tracking_uri or local_store(Path(output), f"run {run}")
        return load_logged(str(run), uri, device, step=step, output=output, own_code=own_code)
    if not is_model(Path(run)):
        return open_step(TrialFolder(Path(run)), step, device, own_code=own_code)
    if step != "last":
        raise UserError(f"RUN {run}: is the folder of one model. Expected a run's id or a trial's folder with a step.")
    return open_model(Path(run), device, own_code=own_code)


def routing_map(model: "TrainedModel", task: Any, pair: int = 0, *, projection: str = "o", title: str = "") -> "Figure":
    """The routing map of an ARC task: its grids, each cell coloured by the expert that dominates there, by layer.

    Args:
        model: of `load_model`.
        task: as in `TrainedModel.predict`; of a Task the answer of the test pair is shown, too.
        pair: the test pair that follows the demonstrations.
        projection: q, k, v or o: the experts of which module of each layer.

    Returns:
        a matplotlib figure; `savefig` writes it.

    Raises:
        UserError: the task is malformed, has no such pair or is longer than those that the model was trained on.
    """
    from pipeline.drawing import own_style
    from pipeline.training.routing_map import map_routing, plot_map, sequence_of

    found = map_routing(model.model, sequence_of(model, task, pair), projection=projection, step=model.step)
    with own_style():
        return plot_map(found, title)


def results(
    sweep: str,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    mlflow_experiment: str = EXPERIMENT,
    sweep_id: str | None = None,
) -> "DataFrame":
    """The results of a sweep as a data frame, a row for each finished trial; runs and writes nothing.

    Its columns are arm, seed, what else varies by its dotted name, the report's numbers in the units of the metrics
    (rates from 0 to 1, seconds, nats; NaN was not measured) and run_id. `results.csv` of the report holds the same.

    Args:
        sweep_id: as in `report`.

    Raises:
        UserError: as `report`.
    """
    from pipeline.reporting.frames import results_frame

    return results_frame(_read_results(sweep, output, tracking_uri, mlflow_experiment, sweep_id))


def compare(
    first: str,
    second: str,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    mlflow_experiment: str = EXPERIMENT,
    console: "Console | None" = None,
) -> "DataFrame":
    """Compares two sweeps seed by seed, as yesterday's code and today's: prints and writes `second` less `first`.

    Args:
        first, second: a sweep's name; or its id, or NAME@ID, where both have one name. An id's first digits will do.

    Returns:
        A row for each pair of trials: arm, what varies, seed, and of every column KEY_first, KEY_second and
        KEY_difference. The same is written as less-FIRST.csv, with a table of means, to the second's report folder.

    Raises:
        UserError: as `report`, or the folder cannot be written to.
    """
    from rich.console import Console as Screen

    from pipeline.reporting import two_sweeps
    from pipeline.reporting.results import read_results
    from pipeline.tracking.find_runs import WITHOUT_ID

    meant = [_find_sweep(word, output, tracking_uri, mlflow_experiment, None) for word in (first, second)]
    if meant[0] == meant[1]:
        raise UserError(
            f"report: {first} and {second} are the same sweep; expected two. Of several of one name, say which by "
            "NAME@ID."
        )
    read = [read_results(uri, mlflow_experiment, name, known) for uri, name, known in meant]
    if meant[0][1] == meant[1][1]:
        read = [
            dataclasses.replace(each, sweep=f"{name}@{(known or WITHOUT_ID)[:8]}")
            for each, (_, name, known) in zip(read, meant, strict=True)
        ]
    found = two_sweeps.compare_sweeps(*read)
    console, folder = console or Screen(), Output(Path(output)).sweep(meant[1][1]) / "report"
    two_sweeps.print_comparison(found, console)
    try:
        paths = two_sweeps.write_comparison(found, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: the comparison cannot be written ({error.strerror}). Expected a folder that can be written "
            "to; name another with --output, and the store with --tracking-uri."
        ) from error
    console.print("\n".join(f"Written: {path}" for path in paths), highlight=False, soft_wrap=True)
    return two_sweeps.frame(found)


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


def _read_results(
    sweep: str, output: str | Path, tracking_uri: str | None, mlflow_experiment: str, sweep_id: str | None
) -> "Results":
    from pipeline.reporting.results import read_results

    uri, sweep, wanted = _find_sweep(sweep, output, tracking_uri, mlflow_experiment, sweep_id)
    return read_results(uri, mlflow_experiment, sweep, wanted)


def _find_sweep(
    sweep: str, output: str | Path, tracking_uri: str | None, mlflow_experiment: str, sweep_id: str | None
) -> tuple[str, str, str | None]:
    """The store that a sweep is in, its name, and its id there, where one is named or recorded."""
    from pipeline.settings.config import check_name
    from pipeline.tracking.find_runs import find_sweep, recorded_id

    check_name(sweep.partition("@")[0], "SWEEP")
    uri = tracking_uri or local_store(Path(output), sweep)
    name, known = find_sweep(uri, mlflow_experiment, sweep, sweep_id)
    return uri, name, recorded_id(Output(Path(output)), uri, name) if known is None else known


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
