"""A sweep on disk as its command leaves it, and what must be in MLflow when all of it has been delivered."""

import json
import sqlite3
from collections import Counter
from pathlib import Path

from pipeline.layout import Output, TrialFolder
from pipeline.records.attempts import write_failure
from pipeline.records.delivery import read_delivery
from pipeline.records.sweep_record import sweep_id
from pipeline.running.claim import claim
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial
from pipeline.tracking.describe import SWEEP_ID
from pipeline.tracking.destination import Destination, remember
from tests.pipeline.sweep_samples import EXTRA, experiment, metrics_at, trials, write_spool

STEPS = (0, 10, 20)


def begin(output: Output, name: str, destination: Destination, **parts) -> list[tuple[Trial, TrialFolder]]:
    """The sweep's folder with its claim; no trial has begun."""
    sample: Experiment = experiment(name, **parts)
    claim(output.sweep(name), sample, EXTRA["data_hash"], False, "")
    remember(output.sweep(name), destination, EXTRA | {SWEEP_ID: sweep_id(output.sweep(name))})
    return trials(output, sample)


def leave(trial: Trial, folder: TrialFolder, status: str, steps=STEPS) -> None:
    """The trial's folder as it is after it has come to `status`."""
    folder.result.unlink(missing_ok=True)
    write_failure(folder, "session", "rank 0: ValueError: no luck")
    write_spool(trial, folder, steps)
    if status == "FINISHED":
        folder.result.write_text(json.dumps({"metrics": {}, "steps": 20, "seconds": 1}))
    if status != "FAILED":
        folder.failure.unlink()


def assert_whole(store: Output, trial: Trial, folder: TrialFolder, status: str, steps=STEPS) -> str:
    """Asserts that the trial has one run in `store`, ended as `status`, with each (metric, step) once, in order."""
    database = sqlite3.connect(store.root / "mlflow.db")
    run_id = read_delivery(folder.delivery).run_id
    of_trial = "select r.run_uuid, r.status, r.name from runs r join tags t on t.run_uuid = r.run_uuid and t.key = "
    of_trial += "'creation_key' where r.lifecycle_stage = 'active' and t.value = ?"
    (run,) = database.execute(of_trial, [read_delivery(folder.delivery).creation_key]).fetchall()
    assert run == (run_id, status, f"{trial.experiment.training.arm} · s{trial.experiment.training.seed}")
    rows = database.execute("select key, step from metrics where run_uuid = ? order by rowid", [run_id]).fetchall()
    expected = [(name, step) for step in steps for name in metrics_at(trial, step)]
    assert Counter(rows) == Counter(expected)
    assert [step for _, step in rows] == sorted(step for _, step in rows)
    params = dict(database.execute("select key, value from params where run_uuid = ?", [run_id]).fetchall())
    assert params["training.seed"] == str(trial.experiment.training.seed)
    database.close()
    return run_id


def statuses(store: Output, sweep: str) -> Counter:
    """How many active runs of a sweep, its summary included, have which status."""
    database = sqlite3.connect(store.root / "mlflow.db")
    rows = database.execute(
        "select r.status from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'sweep' "
        "where r.lifecycle_stage = 'active' and t.value = ?",
        [sweep],
    ).fetchall()
    database.close()
    return Counter(status for (status,) in rows)


def files_of(store: Output, run_id: str) -> set[str]:
    """The names of the files that a run has, wherever its experiment keeps them."""
    return {path.name for folder in store.artifacts.rglob(run_id) for path in Path(folder).rglob("*") if path.is_file()}
