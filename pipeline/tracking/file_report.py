"""Files a sweep's report on its summary run, where MLflow's page shows it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.describe import ROLE, SWEEP
from pipeline.tracking.find_runs import runs_of_sweep
from pipeline.tracking.store import find_experiment, open_store, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LONGEST_NOTE = 8000  # MLflow's limit


def log_files(client: "MlflowClient", run_id: str, paths: Sequence[Path]) -> None:
    """Makes the files artifacts of a run; `report.md` becomes its description too."""
    for path in paths:
        client.log_artifact(run_id, str(path))
        if path.name == "report.md":
            client.set_tag(run_id, "mlflow.note.content", _note(path.read_text(encoding="utf-8")))


def file_report_on_summary(
    uri: str, experiment_name: str, sweep: str, paths: Sequence[Path], sweep_id: str | None = None
) -> str | None:
    """Files a report made anew on the sweep's newest summary run; returns its id, or None where there is no such run.

    Raises:
        UserError: the store cannot be used; or as `runs_of_sweep`, which says what `sweep_id` is.
    """
    client = open_store(uri, create=False)
    with store_errors(uri):
        experiment_id = find_experiment(client, experiment_name)
        mine = f"tags.{ROLE} = 'summary' and tags.{SWEEP} = '{sweep}'"
        there = client.search_runs([experiment_id], mine, order_by=["attributes.start_time DESC"])
        runs = runs_of_sweep(there, sweep, sweep_id)
        if not runs:
            return None
        run_id = str(runs[0].info.run_id)
        log_files(client, run_id, paths)
        return run_id


def _note(report: str) -> str:
    """The report without its pictures, which a description cannot show."""
    text = "\n".join(line for line in report.splitlines() if not line.startswith("!["))
    return text if len(text) <= _LONGEST_NOTE else text[: _LONGEST_NOTE - 20] + "\n\n… see report.md"
