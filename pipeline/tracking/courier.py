"""Ships trials to the tracker from threads of its own, so that a slow tracker delays nothing else."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.state import State
from pipeline.secrecy import mask
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.pool import CallPool
from pipeline.tracking.store import StoreUnreachable

_EVERY_S = 3.0
_BUSY_S = 0.05  # between tries to make the last call for a trial whose call before is still under way
_STUCK_S = 120.0  # for one trial to be shipped; a tracker that takes longer is given up
_HURRY_S = 5.0  # to come to an end when the user will not wait
STATUS = {State.FINISHED: "FINISHED", State.PRUNED: "FINISHED", State.FAILED: "FAILED", State.STOPPED: "KILLED"}


class TrackingTarget(Protocol):
    """What the courier delivers to, as the Tracker. Starting and shipping again does no harm.

    Calls for different trials, and for the summary, may be under way together, for one trial never. `close` comes last.
    """

    at_once: int  # how many trials it takes at a time

    @property
    def untouched(self) -> bool:
        """Whether the store has never answered, so that no run of it can have been left RUNNING."""

    def start_trial(
        self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str], ending: str | None = None
    ) -> Delivery:
        """Opens the trial's run, or continues the one that it has, and ships. `ending`: its final status, if any."""

    def ship(self, run: Delivery) -> int:
        """Sends what is new in the trial's folder or still outstanding; returns how much."""

    def end_trial(self, run: Delivery, status: str) -> None:
        """Ships the rest and ends the trial's run as FINISHED, FAILED or KILLED."""

    def start_summary(self, sweep_folder: Path, experiment: Experiment) -> str:
        """Opens the summary run of a sweep; returns its id."""

    def end_summary(self, status: str, artifacts: list[Path]) -> None:
        """Files the report and ends the summary run."""

    def close(self, status: str) -> dict[Path, str]:
        """Ends what is still open as `status`; returns the folders of what could not be delivered, and why."""


@dataclass
class _Parcel:
    """A trial that is not delivered whole. How far its delivery is, `run` alone says.

    The courier's thread sets `busy` before it submits a call. The thread of that call resets it when it ends; until
    then, no other thread touches the rest.
    """

    trial: Trial
    folder: TrialFolder
    run: Delivery | None = None  # once it is started
    busy: bool = False


class Courier:
    """Takes the trials' states from `see`, and delivers them to the tracker until `finish`.

    Its own thread goes around all trials, and delivers as many at a time as the tracker takes. A trial whose
    last call is still under way is passed over, so that its calls come in order. Should the thread end by an error,
    training goes on, and `finish` reports that nothing was delivered any more.
    """

    def __init__(
        self,
        tracker: TrackingTarget,
        sweep: str,
        folder: Path,
        experiment: Experiment,
        trials: Sequence[tuple[Trial, TrialFolder]],
        extra: Mapping[str, str],
    ) -> None:
        self._tracker, self._sweep, self._folder, self._experiment = tracker, sweep, folder, experiment
        self._parcels = {trial.key: _Parcel(trial, place) for trial, place in trials}  # those not delivered whole
        self._pool = CallPool(tracker.at_once, "courier-pool")
        self._extra = dict(extra)
        self._states: dict[str, State] = {}
        self._summary_open = experiment.sweep is None  # one run alone has no summary
        self._problems: dict[str, str] = {}  # errors outside of deliveries, by what failed; shared by all threads
        self._lock = threading.Lock()  # guards it
        self._moved = time.monotonic()
        self._closing = threading.Event()
        self._let_go = False
        self._status = "KILLED"
        self._make_report: Callable[[], list[Path]] | None = None
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def see(self, states: Mapping[str, State]) -> None:
        """The trials' states as they are now."""
        self._states = dict(states)

    def let_go(self) -> None:
        """Delivers nothing more, not even that runs have ended: another process goes on with them, or nothing
        was begun."""
        self._let_go = True
        self._closing.set()
        self._thread.join(_HURRY_S)

    def finish(
        self,
        status: str,
        make_report: Callable[[], list[Path]] | None,
        wait_s: float | None,
        hurry: Callable[[], bool] = lambda: False,
    ) -> list[str]:
        """Ships the rest, uploads the report, ends every run, and returns a message for each problem.

        Args:
            status: of the summary run.
            make_report: makes the files for the summary run, when every trial has been shipped.
            wait_s: waits no longer than this; None: as long as something moves.
            hurry: whether the user will not wait any longer.
        """
        self._status, self._make_report = status, make_report
        self._moved = began = time.monotonic()
        self._closing.set()
        end = None if wait_s is None else began + wait_s
        while self._thread.is_alive():
            if end is None and hurry():
                end = time.monotonic() + _HURRY_S
            now = time.monotonic()
            left = min(self._moved + _STUCK_S, end or float("inf")) - now
            if left <= 0:
                self._note("wait", f"delivery to MLflow was still under way after {wait_s or now - began:.3g} s")
                break
            self._thread.join(min(left, 0.5))
        with self._lock:
            return list(self._problems.values())

    def _work(self) -> None:
        try:
            while not self._closing.wait(_EVERY_S):
                self._round(self._states)
            if not self._let_go:
                self._end()
        except BaseException as error:  # or nobody would know that nothing is delivered any more
            self._note(
                "courier",
                mask(
                    f"delivery to the tracker was ended by an error ({error!r}). Run `tiny-onn sync` to "
                    "deliver the rest."
                ),
            )

    def _end(self) -> None:
        waiting: Collection[str] = self._states
        while waiting := self._round(waiting):  # those that were busy have not had their last call
            time.sleep(_BUSY_S)
        self._pool_done()
        unreachable: StoreUnreachable | None = None
        if self._experiment.sweep is not None and self._summary_open:
            files: list[Path] = []
            if self._make_report is not None:
                with self._noting("report"):
                    try:
                        files = self._make_report()
                    except StoreUnreachable as error:
                        unreachable = error
            with self._noting("summary"):
                self._tracker.end_summary(self._status, files)
        undelivered: dict[Path, str] = {}
        with self._noting("close"):
            undelivered = self._tracker.close(self._status)
        for why in dict.fromkeys(undelivered.values()):
            names = ", ".join(folder.name for folder, reason in undelivered.items() if reason == why)
            self._note(f"close {why}", f"MLflow has not received all of {names}" + (f" ({why})" if why else ""))
        if unreachable and undelivered:  # the cause stands above
            self._note("report", "the report, which is made from MLflow, follows with the rest")
        elif unreachable:
            self._note("report", mask(f"report: {unreachable}"))

    def _pool_done(self) -> None:
        """Waits for all calls under way. What one raises in spite of `_noting` keeps no other trial from its end."""
        try:
            self._pool.wait()
        except BaseException as error:
            self._note("pool", mask(f"a call to the tracker was ended by an error: {error!r}"))

    def _round(self, keys: Collection[str]) -> list[str]:
        """Submits those of the trials that are idle; returns those that were busy."""
        if self._states and not self._summary_open:  # before any is known, all may still be refused
            with self._noting("summary"):
                self._tracker.start_summary(self._folder, self._experiment)
                self._summary_open = True
        busy = []
        for key in keys:
            parcel, state = self._parcels.get(key), self._states.get(key, State.WAITING)
            if parcel is None or (parcel.run is None and state is State.WAITING):
                continue
            if parcel.busy:
                busy.append(key)
            else:
                parcel.busy = True
                self._pool.submit(partial(self._ship, parcel, STATUS.get(state)))
        return busy

    def _ship(self, parcel: _Parcel, ending: str | None) -> None:
        """Starts, ships or ends a trial's run; `ending` is its final status, None while it runs."""
        key = parcel.trial.key
        try:
            with self._noting(key):
                if parcel.run is None:
                    parcel.run = self._tracker.start_trial(
                        parcel.folder, parcel.trial, self._sweep, self._extra, ending
                    )
                elif ending is not None and parcel.run.ending is None:
                    self._tracker.end_trial(parcel.run, ending)
                else:
                    self._tracker.ship(parcel.run)
                if parcel.run.over:
                    del self._parcels[key]
        finally:
            parcel.busy = False  # or finish would wait for it for ever

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Keeps an error raised inside for the end of the sweep: no tracker may stop a training run."""
        try:
            yield
        except Exception as error:
            self._note(what, mask(f"{what}: {error}" if isinstance(error, UserError) else f"{what}: {error!r}"))
        else:
            with self._lock:
                self._problems.pop(what, None)
        finally:
            self._moved = time.monotonic()

    def _note(self, what: str, problem: str) -> None:
        with self._lock:
            self._problems[what] = problem
