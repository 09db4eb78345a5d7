"""Delivers to MLflow, one run for each trial and one for the sweep; the server may be unreachable for a time."""

import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.delivery import read_delivery
from pipeline.records.sweep_record import grown, sweep_id
from pipeline.secrecy import mask
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial
from pipeline.tracking.delivery import Delivery, deliver
from pipeline.tracking.describe import describe_summary, describe_trial
from pipeline.tracking.mlflow_run import find_run
from pipeline.tracking.outage import Outage, Pause
from pipeline.tracking.pool import CallPool
from pipeline.tracking.store import StoreUnreachable, calls_at_once, in_a_line, open_experiment, open_store, sqlite_file

if TYPE_CHECKING:
    from pipeline.tracking.client import StoreClient

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
_ITS_OWN_FAULT = (400, 403, 404, 409)  # statuses of an answer that concerns this run alone


class Tracker:
    """The driver's only door to MLflow. Once it is open, no method raises or hangs because a server is away.

    What could not be delivered stays in the trial's folder and goes out with a later call; after a failure the calls
    do nothing for 1, 2, 4, ... at most 60 s. `sent` counts the points that went out, `ended` has the folders of the
    runs that were ended.

    Several trials may be delivered at a time, each by one thread at a time; the store takes `at_once` of them. The
    state of one run is in its Delivery; what threads share is behind the lock, or in the Outage, which has its own.
    """

    def __init__(
        self, uri: str, experiment: str, artifacts: Path | None, later: bool = False, recount: bool = False
    ) -> None:
        """Opens the store, creating SQLite file and experiment if need be; `artifacts` is where a new one keeps files.

        Args:
            later: a store that does not answer is no error: it is opened when it does.
            recount: what has been sent before does not count, but what the store has.

        Raises:
            UserError: within about ten seconds, when the store cannot be used. Passwords are masked.
        """
        self._uri, self._experiment, self._artifacts, self._recount = uri, experiment, artifacts, recount
        self.at_once = calls_at_once(uri)
        self._server = Outage()
        self._lock = threading.Lock()  # guards all that follows but the summary, which one thread alone delivers
        self._client: StoreClient | None = None
        self.experiment_id = ""
        self.sent = 0
        self.ended: list[Path] = []
        self._runs: dict[Path, Delivery] = {}  # those not delivered whole
        self._summary: Delivery | None = None
        try:
            self._open()
        except StoreUnreachable as error:
            if not later:
                raise
            self._server.leave(0, False, str(error))

    @property
    def problem(self) -> str | None:
        """Why nothing goes out; None while all is well."""
        return self._server.problem

    @property
    def untouched(self) -> bool:
        """Whether the store has never answered, now or to an earlier command: no run can have been left RUNNING."""
        with self._lock:
            runs = list(self._runs.values())
        return self._client is None and not any(run.state.run_id for run in runs)

    def start_trial(
        self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str], ending: str | None = None
    ) -> Delivery:
        """Begins the trial's run, or goes on in the one that its folder remembers, and ships what the folder has.

        Args:
            extra: `data_name`, `data_hash` and `data_counts` (JSON text) make the data set input; all others are tags.
            ending: the trial's final status, if it has ended: all of it is sent, and a run that has all is not touched.
        """
        return self._start(
            Delivery(folder.delivery, describe_trial(trial, sweep, extra), folder, ending, recount=self._recount)
        )

    def ship(self, run: Delivery) -> int:
        """Does what is outstanding for a run, as far as the server allows; returns the number of points sent."""
        from mlflow.exceptions import MlflowException

        if run.over or run.pause.lasts or (entered := self._server.enter()) is None:
            return 0
        before, answered, problem = run.sent, None, ""
        try:
            if deliver(self._open(), self.experiment_id, run):
                answered, run.problem, run.pause = True, "", Pause()
        except (MlflowException, OSError, UserError) as error:
            run.unsure = True
            problem = error.brief if isinstance(error, StoreUnreachable) else in_a_line(error, self._uri)
            if isinstance(error, UserError) and not isinstance(error, StoreUnreachable):
                problem = mask(str(error), self._uri)
            if isinstance(error, MlflowException) and error.get_http_status_code() in _ITS_OWN_FAULT:
                run.problem = problem
                run.pause.grow()
            else:
                answered = False
        finally:
            self._server.leave(entered, answered, problem)
            self._count(run, run.sent - before)
        return run.sent - before

    def end_trial(self, run: Delivery, status: str) -> None:
        """Ships the rest and the files of a trial's end, and ends its run as FINISHED, FAILED or KILLED."""
        run.ending = status
        self.ship(run)

    def start_summary(self, sweep_folder: Path, experiment: Experiment) -> str:
        """Begins, or takes up, the sweep's summary run; returns its id, "" if still to come."""
        description = describe_summary(experiment, sweep_id(sweep_folder), grown(sweep_folder))
        self._summary = self._start(Delivery(_summary_file(sweep_folder), description, None))
        return self._summary.run_id

    def end_summary(self, status: str, artifacts: Sequence[Path]) -> None:
        """Files the report's `artifacts` on the summary run and ends it; `report.md` becomes its description too."""
        run = self._summary
        assert run is not None, "end_summary without start_summary"
        assert not run.over, "end_summary twice"
        run.ending, run.artifacts = status, list(artifacts)
        self.ship(run)

    def has_summary(self, sweep_folder: Path, status: str, with_report: bool) -> bool:
        """Whether the sweep's summary run has been ended as `status`, and has a report if it should."""
        from mlflow.exceptions import MlflowException

        try:
            client, known = self._open(), read_delivery(_summary_file(sweep_folder))
            run = find_run(client, self.experiment_id, known) if known else None
            if run is None or run.info.status != status:
                return False
            files = {file.path for file in client.list_artifacts(run.info.run_id)}
            return not with_report or "report.md" in files
        except (MlflowException, OSError, UserError):
            return False

    def close(self, status: str, wait_s: float = 10.0) -> dict[Path, str]:
        """Ends every open run, those still under way as `status`; tries again until `wait_s` after the last has ended.

        No other call may be under way. Returns the folders of what could not be delivered, and why; starting and ending
        those trials again delivers it.
        """
        pool = CallPool(self.at_once, "tracker")
        deadline = time.monotonic() + wait_s
        while runs := self._outstanding():
            self._server.end_pause()
            for run in runs:
                run.ending = run.ending or status
                run.pause.until = 0.0
                pool.submit(partial(self.ship, run))
            pool.wait()
            left = self._outstanding()
            if len(left) < len(runs):
                deadline = time.monotonic() + wait_s
            elif time.monotonic() >= deadline:
                break
            if left:
                time.sleep(min(1.0, wait_s))
        return {
            run.path.parent: run.damage if run.over else run.problem or self.problem or ""
            for run in self._runs.values()
        }

    def _open(self) -> "StoreClient":
        from pipeline.tracking.moved import correct_paths

        with self._lock:
            if self._client is None:
                client = open_store(self._uri)
                if database := sqlite_file(self._uri):
                    correct_paths(database)
                self.experiment_id = open_experiment(client, self._experiment, self._artifacts)
                self._client = client
            return self._client

    def _start(self, run: Delivery) -> Delivery:
        with self._lock:
            self._runs[run.path] = run
        self.ship(run)
        return run

    def _outstanding(self) -> list[Delivery]:
        with self._lock:
            return [run for run in self._runs.values() if not run.over]

    def _count(self, run: Delivery, sent: int) -> None:
        with self._lock:
            self.sent += sent
            if run.ended:
                self.ended.append(run.path.parent)
            if run.over and not run.damage:
                del self._runs[run.path]


def _summary_file(sweep_folder: Path) -> Path:
    return sweep_folder / "mlflow_summary.json"
