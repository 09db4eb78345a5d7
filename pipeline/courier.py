"""Ships trials to the tracker from a thread of its own, so that a slow tracker holds up nothing."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import Experiment, Trial
from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.progress import State

_EVERY_S = 3.0
STATUS = {State.FINISHED: "FINISHED", State.FAILED: "FAILED", State.STOPPED: "KILLED"}


class Tracker(Protocol):
    """What a sweep needs of a tracker. Called from one thread at a time; starting and shipping again does no harm."""

    def start_trial(self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str]) -> str:
        """Opens the trial's run, or goes on in the one that it has; returns its id."""

    def ship(self, folder: TrialFolder) -> int:
        """Sends what is new in the folder; returns how much."""

    def end_trial(self, folder: TrialFolder, status: str) -> None:
        """Ends the trial's run as FINISHED, FAILED or KILLED."""

    def start_summary(self, sweep_folder: Path, experiment: Experiment) -> str:
        """Opens the summary run of a sweep; returns its id."""

    def end_summary(self, status: str, artifacts: list[Path]) -> None:
        """Files the report and ends the summary run."""

    def close(self, status: str) -> list[Path]:
        """Ends what is still open as `status`; returns the folders of what could not be delivered."""


class Courier:
    """Takes the trials' states from `see`, and tells the tracker of them in its own thread until `finish`."""

    def __init__(
        self,
        tracker: Tracker,
        sweep: str,
        folder: Path,
        experiment: Experiment,
        trials: Sequence[tuple[Trial, TrialFolder]],
        extra: Mapping[str, str],
    ) -> None:
        self._tracker, self._sweep, self._folder, self._experiment = tracker, sweep, folder, experiment
        self._trials = {trial.key: (trial, place) for trial, place in trials}
        self._extra = dict(extra)
        self._states: dict[str, State] = {}
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._summary_open = experiment.sweep is None  # one run alone has no summary
        self._problems: dict[str, str] = {}
        self._closing = threading.Event()
        self._status = "KILLED"
        self._make_report: Callable[[], list[Path]] | None = None
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def see(self, states: Mapping[str, State]) -> None:
        """The trials' states as they are now."""
        self._states = dict(states)

    def finish(self, status: str, make_report: Callable[[], list[Path]] | None, wait_s: float | None) -> list[str]:
        """Ships the rest, files the report, ends every run, and returns what went wrong, in words.

        Args:
            status: of the summary run.
            make_report: makes the files for the summary run, when every trial has been shipped.
            wait_s: waits no longer than this.
        """
        self._status, self._make_report = status, make_report
        self._closing.set()
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self._problems["wait"] = f"the tracker was still busy after {wait_s:g} s"
        return list(self._problems.values())

    def _work(self) -> None:
        while not self._closing.wait(_EVERY_S):
            self._round()
        self._round()
        if self._experiment.sweep is not None and self._summary_open:
            files = self._attempt("report", self._make_report) if self._make_report else []
            self._attempt("summary", lambda: self._tracker.end_summary(self._status, files or []))
        undelivered = self._attempt("close", lambda: self._tracker.close(self._status))
        if undelivered:
            self._problems["close"] = f"the tracker has not taken all of {', '.join(Path(f).name for f in undelivered)}"

    def _round(self) -> None:
        if not self._summary_open:
            opened = self._attempt("summary", lambda: self._tracker.start_summary(self._folder, self._experiment))
            self._summary_open = opened is not None
        for key, state in self._states.items():
            if state is not State.WAITING and key not in self._ended:
                self._attempt(key, partial(self._ship, key, state))

    def _ship(self, key: str, state: State) -> None:
        trial, folder = self._trials[key]
        if key not in self._started:
            self._tracker.start_trial(folder, trial, self._sweep, self._extra)
            self._started.add(key)
        self._tracker.ship(folder)
        if state in STATUS:
            self._tracker.end_trial(folder, STATUS[state])
            self._ended.add(key)

    def _attempt(self, what: str, call: Callable[[], Any]) -> Any:
        """The call's value. Its error is kept for the end of the sweep: no tracker may stop a training run."""
        try:
            value = call()
        except Exception as error:
            self._problems[what] = f"{what}: {error}" if isinstance(error, UserError) else f"{what}: {error!r}"
            return None
        self._problems.pop(what, None)
        return value
