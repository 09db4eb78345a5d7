"""What the driver tells MLflow: one run a trial and one a sweep, whatever becomes of the server meanwhile."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import Experiment, Trial
from pipeline.describe import describe_summary, describe_trial
from pipeline.layout import TrialFolder
from pipeline.mlflow_run import Description, begin_run, read_memory, write_memory
from pipeline.shipping import ship_figures, ship_files, ship_metrics, shipped
from pipeline.store import mask, open_experiment, open_store

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
_LONGEST_PAUSE_S = 60.0
_LONGEST_NOTE = 8000  # MLflow's limit


@dataclass
class _OpenRun:
    """A run on its way. What is wanted is set at once; what is done follows when the server lets it."""

    memory: Path
    description: Description
    folder: TrialFolder | None
    run_id: str = ""
    unsure: bool = True  # points may be there that we do not remember having sent
    ending: str | None = None
    artifacts: list[Path] = field(default_factory=list)


class Tracker:
    """The driver's only door to MLflow. Once it is open, no method raises or hangs because a server is away.

    What could not be delivered stays in the trial's folder and goes out with a later call; after a failure the calls
    do nothing for 1, 2, 4, ... at most 60 s. `problem` says why nothing goes out, and is None while all is well.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None) -> None:
        """Opens the store, creating SQLite file and experiment if need be; `artifacts` is where a new one keeps files.

        Raises:
            UserError: within about ten seconds, when the store cannot be used. Passwords are masked.
        """
        self._client = open_store(uri)
        self._uri = uri
        self.experiment_id = open_experiment(self._client, experiment, artifacts)
        self.problem: str | None = None
        self._runs: dict[Path, _OpenRun] = {}
        self._summary: Path | None = None
        self._pause_s, self._quiet_until = 0.0, 0.0

    def start_trial(self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str]) -> str:
        """Begins the trial's run, or goes on in the one that its folder remembers; returns its id, "" if still to come.

        `extra`: `data_name`, `data_hash` and `data_counts` (JSON text) make the data set input; all others become tags.
        """
        return self._start(_OpenRun(folder.run_id, describe_trial(trial, sweep, extra), folder))

    def ship(self, folder: TrialFolder) -> int:
        """Sends new metrics and prototype distributions of a started trial; returns the number of points sent."""
        return self._advance(self._runs[folder.run_id])

    def end_trial(self, folder: TrialFolder, status: str) -> None:
        """Sends the rest, files what the trial leaves, and ends its run as FINISHED, FAILED or KILLED."""
        run = self._runs[folder.run_id]
        run.ending = status
        self._advance(run)

    def start_summary(self, sweep_folder: Path, experiment: Experiment) -> str:
        """Begins, or takes up, the sweep's summary run; returns its id, "" if still to come."""
        self._summary = sweep_folder / "mlflow_summary.json"
        return self._start(_OpenRun(self._summary, describe_summary(experiment), None))

    def end_summary(self, status: str, artifacts: Sequence[Path]) -> None:
        """Files the report's `artifacts` on the summary run and ends it; `report.md` becomes its description too."""
        assert self._summary is not None, "end_summary without start_summary"
        run = self._runs[self._summary]
        run.ending, run.artifacts = status, list(artifacts)
        self._advance(run)

    def close(self, status: str, wait_s: float = 20.0) -> list[Path]:
        """Ends every open run, those still under way as `status`, trying for `wait_s`.

        Returns the folders of what could not be delivered; starting and ending those trials again delivers it.
        """
        for run in self._runs.values():
            run.ending = run.ending or status
        deadline = time.monotonic() + wait_s
        self._quiet_until = 0.0
        while self._runs:
            for run in list(self._runs.values()):
                self._advance(run)
            if time.monotonic() >= deadline:
                break
            if self._runs:
                time.sleep(min(1.0, wait_s))
                self._quiet_until = 0.0
        return [memory.parent for memory in self._runs]

    def _start(self, run: _OpenRun) -> str:
        self._runs[run.memory] = run
        self._advance(run)
        return run.run_id

    def _advance(self, run: _OpenRun) -> int:
        """Does all that is outstanding for a run, in order, as far as the server lets it."""
        from mlflow.exceptions import MlflowException

        if time.monotonic() < self._quiet_until:
            return 0
        try:
            sent = self._deliver(run)
        except (MlflowException, OSError) as error:
            run.unsure = True
            self.problem = mask(str(error), self._uri)
            self._pause_s = min(_LONGEST_PAUSE_S, max(1.0, 2 * self._pause_s))
            self._quiet_until = time.monotonic() + self._pause_s
            return 0
        self.problem, self._pause_s = None, 0.0
        return sent

    def _deliver(self, run: _OpenRun) -> int:
        client, folder = self._client, run.folder
        if not run.run_id:
            run.run_id, known = begin_run(client, self.experiment_id, run.memory, run.description)
            run.unsure = known
        sent = 0
        if folder is not None:
            sent = ship_metrics(client, run.run_id, folder, run.unsure)
            ship_figures(client, run.run_id, folder, run.unsure)
        run.unsure = False
        if run.ending is None:
            return sent
        if folder is not None:
            ship_files(client, run.run_id, folder)
        for path in run.artifacts:
            client.log_artifact(run.run_id, str(path))
            if path.name == "report.md":
                client.set_tag(run.run_id, "mlflow.note.content", _note(path.read_text(encoding="utf-8")))
        client.set_terminated(run.run_id, run.ending)
        if folder is not None:
            write_memory(folder.shipped, {**shipped(folder, run.run_id), "ended": run.ending})
        del self._runs[run.memory]
        return sent


def is_delivered(folder: TrialFolder) -> bool:
    """Whether MLflow has all of a trial that has ended, to the last tag."""
    return read_memory(folder.shipped).get("ended") is not None


def _note(report: str) -> str:
    """The report without its pictures, which a description cannot show."""
    text = "\n".join(line for line in report.splitlines() if not line.startswith("!["))
    return text if len(text) <= _LONGEST_NOTE else text[: _LONGEST_NOTE - 20] + "\n\n… see report.md"
