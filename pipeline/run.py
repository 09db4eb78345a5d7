"""Runs the trials of an experiment from the first check to the filed report, and says how that ended."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pipeline.drawing import own_style
from pipeline.errors import UserError
from pipeline.layout import Output, TrialFolder
from pipeline.records.continued import is_left
from pipeline.records.delivery import read_delivery
from pipeline.records.sweep_record import RECORD
from pipeline.running.cluster import EarlyStart
from pipeline.running.run_options import RunOptions
from pipeline.running.sweep import SweepOutcome, run_sweep
from pipeline.secrecy import public
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial, arms_setting
from pipeline.submission.on_cluster import SUBMITTED_AS
from pipeline.terminal import lasting_output
from pipeline.tracking.destination import EXPERIMENT, Destination

if TYPE_CHECKING:
    from pandas import DataFrame

    from pipeline.reporting.report import Report


@dataclass(frozen=True)
class Outcome:
    """How a run or a sweep ended, and the way to what it found."""

    name: str
    output: Path
    ended: SweepOutcome
    trials: tuple[Trial, ...] = field(repr=False)
    tracking_uri: str | None = None
    mlflow_experiment: str = EXPERIMENT

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return self.ended.exit_code

    def results(self) -> "DataFrame":
        """A row for each finished trial: arm, seed, what else varies, and the report's columns."""
        from pipeline.reporting.frames import results_frame
        from pipeline.reporting.results import read_results
        from pipeline.tracking.find_runs import recorded_id

        uri = self.tracking_uri or Output(self.output).tracking_uri
        sweep_id = recorded_id(Output(self.output), uri, self.name)
        return results_frame(read_results(uri, self.mlflow_experiment, self.name, sweep_id))

    def curves(self, metric: str = "train/task_loss") -> "DataFrame":
        """A metric over the steps, a column for each trial; NaN where a trial has not measured it.

        Raises:
            UserError: no trial has measured it; names the metrics that there are.
        """
        from pipeline.reporting.frames import curves_frame

        spools = {trial.key: Output(self.output).trial(self.name, trial.key).spool for trial in self.trials}
        return curves_frame(spools, metric)


def command_line(words: list[str], destination: Destination, address: str | None, storage: str | None) -> str:
    """The command line that begins with `words` and has these options; of a submitted job, the one that submitted it.

    Raises:
        UserError: `storage` cannot be one.
    """
    from pipeline.storage.opening import open_storage

    options = [*destination.options(), *(["--address", address] if address else [])]
    options += [] if storage is None else ["--storage", open_storage(storage).public]
    return os.environ.get(SUBMITTED_AS) or destination.command([*words, *options])


@lasting_output()
def run(experiment: Experiment, trials: tuple[Trial, ...], options: RunOptions) -> Outcome:
    """Checks what can be checked, prepares the data, and runs the trials that have not ended.

    Raises:
        UserError: something was refused before anything started.
    """
    from pipeline.data.preparing import prepare_and_report
    from pipeline.planning.opening import opening_words
    from pipeline.planning.preflight import check_data, check_metrics, check_start, open_tracker
    from pipeline.remote.sweep import RemoteSweep
    from pipeline.storage.opening import checked_storage

    where, console, address, destination = options.output, options.console, options.address, options.destination
    place = checked_storage(options.storage)
    folders = {trial.key: where.trial(experiment.name, trial.key) for trial in trials}
    sweep = where.sweep(experiment.name)
    with RemoteSweep(place / "sweeps" / experiment.name, sweep, folders) if place else nullcontext() as shared:
        left = [trial for trial in trials if is_left(folders[trial.key], trial.experiment.training.steps)]
        check_metrics(experiment)
        for warning in check_start(left, where.root, address, arms_setting(experiment)):
            console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)
        for line in opening_words(experiment, left, len(trials) - len(left), where.root, address):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if address is None:
            _warn_uncompiled(left, console)
        with _early_start(left, sweep, options) as early:
            options.clock.enter("store")
            tracker = open_tracker(destination, where, options.allow_offline_tracking, console)
            options.clock.enter("data")
            prepared = prepare_and_report(experiment.data, where.data, console, place and place / "data")
            check_data(left, prepared)
            options.clock.enter("command")
            uri = destination.store(where)[0]
            made: list[tuple[Report, list[Path]]] = []

            def report() -> list[Path]:
                made.append(
                    file_report(uri, destination.experiment, experiment.name, where.root, console, in_short=True)
                )
                return made[-1][1]

            ended = run_sweep(
                experiment,
                trials,
                prepared,
                options,
                train_fn="pipeline.running.entry:train_fn_per_worker",  # which imports Ray Train
                tracker=tracker,
                report=report,
                shared=shared,
                early=early,
            )
    if experiment.sweep is None and ended.finished:
        _print_model_paths(next(iter(folders.values())), console)
    elif made:
        _print_answer(*made[-1], options)
    return Outcome(experiment.name, where.root, ended, trials, destination.uri, destination.experiment)


def _early_start(left: Sequence[Trial], sweep: Path, options: RunOptions) -> AbstractContextManager[EarlyStart | None]:
    """Ray on this machine, which starts while the store is opened and the data are prepared.

    Not where it is known not to be needed: nothing is left to run, or what is in the sweep's folder will be refused.
    """
    taken = not options.resume and (sweep / RECORD).exists()
    if options.address is not None or not left or taken:
        return nullcontext()
    return EarlyStart(options.verbose, options.console)


def _warn_uncompiled(trials: Sequence[Trial], console: Console) -> None:
    """Prints a warning where `training.compile: auto` finds no compiler: training takes longer."""
    from tiny_onn.compiling import compiler_problem

    asked = {
        "cuda" if e.workers.gpus else "cpu" for e in (t.experiment for t in trials) if e.training.compile == "auto"
    }
    for device in sorted(asked):
        if problem := compiler_problem(device):
            message = f"Training runs uncompiled here, which takes longer: {problem}."
            console.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _print_model_paths(folder: TrialFolder, console: Console) -> None:
    """Prints where the model and measurements of one training run are; for a sweep its report does so."""
    delivered = read_delivery(folder.delivery)
    known = f", MLflow run {delivered.run_id}" if delivered and delivered.run_id else ""
    console.print(f"Model: {folder.model}{known}\nAll measurements: {folder.result}", highlight=False, soft_wrap=True)


def _print_answer(made: "Report", files: list[Path], options: RunOptions) -> None:
    """The last screen of a sweep: the answer in three sentences, the figure, the page, and the next command."""
    from pipeline.reporting.answer import answer
    from pipeline.reporting.files import FORGETTING_FIGURE
    from pipeline.reporting.phases import PHASES_FIGURE

    output, destination = options.output.root, options.destination
    figures = [path for path in files if path.suffix == ".png" and path.name not in (PHASES_FIGURE, FORGETTING_FIGURE)]
    lines = [f"\n{made.results.sweep}, in short:", *(f"  {each}" for each in answer(made))]
    lines += [f"Figure:  {figures[-1]}"] if figures else []
    page = next(path for path in files if path.suffix == ".html")
    place = [] if output == Path("runs") else ["--output", str(output)]
    browse = destination.command(["tiny-onn", "ui", *place, *destination.options()])
    lines += [f"Report:  {page}", f"Next:    {browse}"]
    lines += _rerun_lines(files, output, destination, options.address, options.storage)
    options.console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _rerun_lines(
    files: list[Path], output: Path, destination: Destination, address: str | None = None, storage: str | None = None
) -> list[str]:
    """For each file of best samples, the command that runs it with fresh seeds in the same place as the search."""
    from pipeline.storage.opening import open_storage

    words = [] if output == Path("runs") else ["--output", str(output)]
    words += [*destination.options(), *(["--address", address] if address else [])]
    words += [] if storage is None else ["--storage", open_storage(storage).public]
    commands = (
        destination.command(["tiny-onn", "ablate", str(path), *words])
        for path in files
        if path.name.startswith("best_samples")
    )
    return [f"Each arm's best sample, with fresh seeds: {command}" for command in commands]


def file_report(
    uri: str,
    mlflow_experiment: str,
    sweep: str,
    output: Path,
    console: Console | None = None,
    sweep_id: str | None = None,
    in_short: bool = False,
) -> "tuple[Report, list[Path]]":
    """The report of a sweep in the store at `uri`, printed and written to the output folder; and its files.

    Args:
        sweep_id: of several sweeps of that name, which. By default the one whose record lies in the output folder, or
            beside the store; without a record, the only one that there is.
        in_short: print the table of means alone, without the findings and the files' paths.

    Raises:
        UserError: the store cannot be used, has no trial of the sweep or several sweeps of that name, or the folder
            cannot be written to.
    """
    with lasting_output(), own_style():
        return _file_report(uri, mlflow_experiment, sweep, output, console or Console(), sweep_id, in_short)


def _file_report(
    uri: str,
    mlflow_experiment: str,
    sweep: str,
    output: Path,
    console: Console,
    sweep_id: str | None,
    in_short: bool,
) -> "tuple[Report, list[Path]]":
    from pipeline.reporting.files import print_report, write_report
    from pipeline.reporting.report import make_report
    from pipeline.tracking.find_runs import recorded_id

    wanted = recorded_id(Output(output), uri, sweep) if sweep_id is None else sweep_id
    here = Output(output).phases(sweep) if sweep_id is None else None
    made = make_report(uri, mlflow_experiment, sweep, wanted, here)
    folder = Output(output).sweep(sweep) / "report"
    try:
        files = write_report(made, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: the report cannot be written ({error.strerror}). Expected a folder that can be written to; "
            f"name another with --output, and the store with --tracking-uri {public(uri)}."
        ) from error
    print_report(made, console, in_short)
    if not in_short:
        page = next(path for path in files if path.suffix == ".html")
        destination = Destination(None if uri == Output(output).tracking_uri else uri, mlflow_experiment)
        for line in _rerun_lines(files, output, destination):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print(f"Report: {files[0]}\nTo look at, in any browser: {page}", highlight=False, soft_wrap=True)
    return made, files
