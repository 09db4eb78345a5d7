"""What the driver tells MLflow: one run a trial and one a sweep, whatever becomes of the server meanwhile."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.reporting.filing import file_on_run
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial
from pipeline.tracking.describe import describe_summary, describe_trial
from pipeline.tracking.mlflow_run import Description, begin_run, find_run, write_memory
from pipeline.tracking.secrecy import mask
from pipeline.tracking.shipping import has_all, ship_figures, ship_files, ship_metrics, shipped
from pipeline.tracking.store import StoreUnreachable, in_a_line, open_experiment, open_store
from pipeline.training.spool import DamagedSpool

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
_LONGEST_PAUSE_S = 60.0
_ITS_OWN_FAULT = (400, 403, 404, 409)  # statuses of an answer that says nothing about other runs


@dataclass
class _Pause:
    """How long to leave a server, or a run that it refuses, alone: 1, 2, 4, ... at most 60 s."""

    seconds: float = 0.0
    until: float = 0.0

    def grow(self) -> None:
        self.seconds = min(_LONGEST_PAUSE_S, max(1.0, 2 * self.seconds))
        self.until = time.monotonic() + self.seconds


@dataclass
class _OpenRun:
    """A run on its way. What is wanted is set at once; what is done follows when the server lets it."""

    memory: Path
    description: Description
    folder: TrialFolder | None
    ending: str | None = None
    run_id: str = ""
    unsure: bool = True  # points may be there that we do not remember having sent
    artifacts: list[Path] = field(default_factory=list)
    pause: _Pause = field(default_factory=_Pause)
    problem: str = ""
    damage: str = ""  # of the spool: what comes after it is never sent


class Tracker:
    """The driver's only door to MLflow. Once it is open, no method raises or hangs because a server is away.

    What could not be delivered stays in the trial's folder and goes out with a later call; after a failure the calls
    do nothing for 1, 2, 4, ... at most 60 s. `problem` says why nothing goes out, and is None while all is well;
    `sent` counts the points that went out, `ended` has the folders of the runs that were ended.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None, later: bool = False) -> None:
        """Opens the store, creating SQLite file and experiment if need be; `artifacts` is where a new one keeps files.

        Args:
            later: a store that does not answer is no error: it is opened when it does.

        Raises:
            UserError: within about ten seconds, when the store cannot be used. Passwords are masked.
        """
        self._uri, self._experiment, self._artifacts = uri, experiment, artifacts
        self._client: MlflowClient | None = None
        self.experiment_id = ""
        self.problem: str | None = None
        self.sent = 0
        self.ended: list[Path] = []
        self._runs: dict[Path, _OpenRun] = {}
        self._damaged: dict[Path, str] = {}
        self._summary: Path | None = None
        self._pause = _Pause()
        try:
            self._open()
        except StoreUnreachable as error:
            if not later:
                raise
            self.problem = str(error)

    def start_trial(
        self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str], ending: str | None = None
    ) -> str:
        """Begins the trial's run, or goes on in the one that its folder remembers; returns its id, "" if still to come.

        Args:
            extra: `data_name`, `data_hash` and `data_counts` (JSON text) make the data set input; all others are tags.
            ending: as what the trial has ended already: all of it is sent, and a run that has it is not touched.
        """
        return self._start(_OpenRun(folder.run_id, describe_trial(trial, sweep, extra), folder, ending))

    def ship(self, folder: TrialFolder) -> int:
        """Sends what is new or outstanding of a started trial; returns the number of points sent."""
        run = self._runs.get(folder.run_id)
        return self._advance(run) if run else 0

    def end_trial(self, folder: TrialFolder, status: str) -> None:
        """Sends the rest, files what the trial leaves, and ends its run as FINISHED, FAILED or KILLED."""
        if run := self._runs.get(folder.run_id):
            run.ending = status
            self._advance(run)

    def start_summary(self, sweep_folder: Path, experiment: Experiment) -> str:
        """Begins, or takes up, the sweep's summary run; returns its id, "" if still to come."""
        self._summary = _summary_memory(sweep_folder)
        return self._start(_OpenRun(self._summary, describe_summary(experiment), None))

    def end_summary(self, status: str, artifacts: Sequence[Path]) -> None:
        """Files the report's `artifacts` on the summary run and ends it; `report.md` becomes its description too."""
        assert self._summary is not None, "end_summary without start_summary"
        run = self._runs[self._summary]
        run.ending, run.artifacts = status, list(artifacts)
        self._advance(run)

    def has_summary(self, sweep_folder: Path, status: str, with_report: bool) -> bool:
        """Whether the sweep's summary run has been ended as `status`, and has a report if it should."""
        from mlflow.exceptions import MlflowException

        try:
            client = self._open()
            found = find_run(client, self.experiment_id, _summary_memory(sweep_folder))
            if found is None or found.info.status != status:
                return False
            files = {file.path for file in client.list_artifacts(found.info.run_id)}
            return not with_report or "report.md" in files
        except (MlflowException, OSError, UserError):
            return False

    def close(self, status: str, wait_s: float = 10.0) -> dict[Path, str]:
        """Ends every open run, those still under way as `status`, trying for `wait_s`.

        Returns the folders of what could not be delivered, and why; starting and ending those trials again delivers it.
        """
        for run in self._runs.values():
            run.ending = run.ending or status
        deadline = time.monotonic() + wait_s
        while self._runs:
            self._pause.until = 0.0
            for run in list(self._runs.values()):
                run.pause.until = 0.0
                self._advance(run)
            if time.monotonic() >= deadline:
                break
            if self._runs:
                time.sleep(min(1.0, wait_s))
        left = {run.memory.parent: run.problem or self.problem or "" for run in self._runs.values()}
        return {**self._damaged, **left}

    def _open(self) -> "MlflowClient":
        if self._client is None:
            client = open_store(self._uri)
            self.experiment_id = open_experiment(client, self._experiment, self._artifacts)
            self._client = client
        return self._client

    def _start(self, run: _OpenRun) -> str:
        self._runs[run.memory] = run
        self._damaged.pop(run.memory.parent, None)
        self._advance(run)
        return run.run_id

    def _advance(self, run: _OpenRun) -> int:
        """Does all that is outstanding for a run, in order, as far as the server lets it."""
        from mlflow.exceptions import MlflowException

        if time.monotonic() < max(self._pause.until, run.pause.until):
            return 0
        before = self.sent
        try:
            self._deliver(run)
        except (MlflowException, OSError, UserError) as error:
            run.unsure = True
            told = mask(str(error), self._uri) if isinstance(error, UserError) else in_a_line(error, self._uri)
            if isinstance(error, MlflowException) and error.get_http_status_code() in _ITS_OWN_FAULT:
                run.problem = told
                run.pause.grow()
            else:
                self.problem = told
                self._pause.grow()
        else:
            self.problem, run.problem = None, ""
            self._pause, run.pause = _Pause(), _Pause()
        return self.sent - before

    def _deliver(self, run: _OpenRun) -> None:
        client, folder = self._open(), run.folder
        if not run.run_id:
            found = find_run(client, self.experiment_id, run.memory)
            if found is not None and folder is not None and run.ending is not None:
                run_id, status = found.info.run_id, found.info.status
                if status == run.ending and has_all(folder, run_id, run.ending):
                    run.run_id = run_id
                    del self._runs[run.memory]
                    return
            run.run_id = begin_run(client, self.experiment_id, run.memory, run.description, found)
            run.unsure = found is not None
            if folder is not None:
                write_memory(folder.shipped, {**shipped(folder, run.run_id), "ended": None})
        if folder is not None:
            try:
                self.sent += ship_metrics(client, run.run_id, folder, run.unsure)
            except DamagedSpool as error:
                run.damage = str(error)
            ship_figures(client, run.run_id, folder, run.unsure)
        run.unsure = False
        if run.ending is not None:
            self._end(client, run, run.ending)

    def _end(self, client: "MlflowClient", run: _OpenRun, status: str) -> None:
        folder = run.folder
        if folder is not None:
            ship_files(client, run.run_id, folder)
        file_on_run(client, run.run_id, run.artifacts)
        find_run(client, self.experiment_id, run.memory)  # a twin may have come late
        client.set_terminated(run.run_id, status)
        if folder is not None and not run.damage:
            write_memory(folder.shipped, {**shipped(folder, run.run_id), "ended": status})
        if run.damage:
            self._damaged[run.memory.parent] = run.damage
        self.ended.append(run.memory.parent)
        del self._runs[run.memory]


def _summary_memory(sweep_folder: Path) -> Path:
    return sweep_folder / "mlflow_summary.json"
