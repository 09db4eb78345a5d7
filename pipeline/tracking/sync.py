"""Delivers what a sweep's commands could not: for a tracker that was away, or a command that was killed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.layout import Output, TrialFolder
from pipeline.records.attempts import last_attempt
from pipeline.records.lock import folder_lock
from pipeline.records.sweep_record import sweep_id
from pipeline.settings.config import Experiment, check_name
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import Trial, every_trial
from pipeline.terminal import lasting_output, shows_a_screen
from pipeline.tracking.describe import SWEEP_ID
from pipeline.tracking.destination import recall
from pipeline.tracking.pool import CallPool
from pipeline.tracking.tracker import FAILED, FINISHED, KILLED, Tracker

MakeReport = Callable[[str, str, str], list[Path]]  # of (store, experiment, sweep): makes the report's files


@dataclass
class SyncResult:
    """What was done for one sweep. `statuses` are those of the trials that have begun."""

    sweep: str
    statuses: dict[str, str] = field(default_factory=dict)
    total: int = 0
    sent: int = 0  # points
    ended: int = 0  # trials of which something was delivered
    reported: bool = False
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """In a line, or one more for each problem."""
        begun = len(self.statuses)
        if self.ended or self.reported:
            done = f"{self.ended} of {self.total} trials delivered now ({self.sent:,} points)"
            done += ", the report filed" if self.reported else ""
        else:
            done = "nothing" if self.problems else "nothing was outstanding"
        counts = {status: sum(s == status for s in self.statuses.values()) for status in (FINISHED, FAILED, KILLED)}
        stand = [f"{n} {status}" for status, n in counts.items() if n]
        stand += [f"{self.total - begun} not begun"] if begun < self.total else []
        return "\n".join([f"{self.sweep}: {done}; {', '.join(stand) or 'no trial'}.", *self.problems])


def sweeps_of(output: Output) -> list[str]:
    """The names of the sweeps in an output folder."""
    return sorted(path.parent.name for path in output.sweep("*").parent.glob("*/sweep.json"))


def sync(
    output: Output,
    sweep: str,
    uri: str | None,
    experiment: str | None,
    make_report: MakeReport,
    over: Callable[[Sequence[Trial]], Iterable[Trial]] = iter,
) -> SyncResult:
    """Sends all that the store lacks of a sweep, as counted there, ends its runs as what their trials came to, and
    files the report.

    A second call changes nothing. Where `uri` names another store than before, that gets everything. The report is
    filed when each trial has ended by itself: a sweep that was stopped gets it when it is resumed.

    Args:
        uri, experiment: None: what the sweep's own command was given.
        over: hands on the trials one by one, and may show how far it is.

    Raises:
        UserError: no such sweep, or one that a live command uses; the store cannot be used.
    """
    check_name(sweep, "SWEEP")
    folder = output.sweep(sweep)
    settings = _settings(folder)
    destination, tags = recall(folder, uri, experiment)
    store, artifacts = destination.store(output)
    tags |= {SWEEP_ID: known} if (known := sweep_id(folder)) else {}
    with folder_lock(folder):
        trials = every_trial(settings)
        done = SyncResult(sweep, total=len(trials))
        tracker = Tracker(store, destination.experiment, artifacts, recount=True)
        pool = CallPool(tracker.at_once, "sync")
        for trial in over(trials):
            place = output.trial(sweep, trial.key)
            status = _status(place)
            if status is not None:
                done.statuses[trial.key] = status
                pool.submit(partial(tracker.start_trial, place, trial, sweep, tags, status))
        pool.wait()
        left = tracker.close(KILLED)
        done.sent, done.ended = tracker.sent, len(tracker.ended)
        if settings.sweep is not None and not left:
            left = _summary(tracker, folder, settings, done, lambda: make_report(store, destination.experiment, sweep))
    done.problems += [f"not delivered: {place.name} ({why})" for place, why in left.items()]
    return done


@lasting_output()
def sync_and_print(
    output: Output, sweep: str | None, uri: str | None, experiment: str | None, make_report: MakeReport
) -> int:
    """`sync` for one sweep, or all of an output folder, with the result printed; 0, or 1 when something is still left.

    Raises:
        UserError: there is nothing to deliver, or the one sweep that was asked for cannot be.
    """
    names = [sweep] if sweep is not None else sweeps_of(output)
    if not names:
        raise UserError(f"--output {output.root}: holds no sweep. Name the folder that `tiny-onn ablate` was given.")
    console, failed = Console(), False
    for name in names:
        try:
            done = sync(output, name, uri, experiment, make_report, partial(_with_bar, console, name))
        except UserError as error:
            if sweep is not None:
                raise
            done = SyncResult(name, problems=[str(error)])
        failed |= bool(done.problems)
        console.print(str(done), highlight=False, markup=False, soft_wrap=True)
    return 1 if failed else 0


def _with_bar(console: Console, name: str, trials: Sequence[Trial]) -> Iterable[Trial]:
    return track(trials, name, console=console, transient=True, disable=not shows_a_screen(console))


def _summary(
    tracker: Tracker, folder: Path, settings: Experiment, done: SyncResult, make_report: Callable[[], list[Path]]
) -> dict[Path, str]:
    statuses = list(done.statuses.values())
    whole = len(statuses) == done.total and KILLED not in statuses
    status = KILLED if not whole else FAILED if FAILED in statuses else FINISHED
    with_report = whole and FINISHED in statuses
    if not statuses or (not done.ended and tracker.has_summary(folder, status, with_report)):
        return {}
    files: Sequence[Path] = []
    if with_report:
        try:
            files = make_report()
        except UserError as error:
            return {folder / "report": str(error)}
    tracker.start_summary(folder, settings)
    tracker.end_summary(status, files)
    left = tracker.close(status)
    done.reported = bool(files) and not left
    return left


def _settings(folder: Path) -> Experiment:
    path = folder / "sweep.json"
    if not path.exists():
        known = ", ".join(sweeps_of(Output(folder.parents[1]))) or "none"
        raise UserError(f"--output {folder.parents[1]}: holds no sweep {folder.name!r}; there are: {known}.")
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("experiment"), dict):
        raise UserError(
            f"{path}: is damaged, not the record of a sweep. Remove this file alone, and give the sweep's command once "
            "more with --resume: it writes the file anew, and keeps what the trials have finished."
        )
    settings = validate_experiment(record["experiment"], str(path))
    if settings.name != folder.name:
        raise UserError(
            f"{path}: is of a sweep {settings.name!r}, but lies in the folder of {folder.name!r}. Rename the "
            f"folder to {settings.name!r}."
        )
    return settings


def _status(folder: TrialFolder) -> str | None:
    """What the trial has come to, while no command works on it; None when it has never begun."""
    if folder.ended:
        return FINISHED
    if last_attempt(folder) is None:
        return None
    return FAILED if folder.failure.exists() else KILLED
