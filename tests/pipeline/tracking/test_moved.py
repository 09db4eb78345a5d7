"""An output folder that was moved, copied, or belongs to somebody else works whole."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from pipeline.data.shards import prepare
from pipeline.layout import Output
from pipeline.records.attempts import Attempt, write_attempt
from pipeline.records.delivery import read_delivery
from pipeline.run import file_report
from pipeline.running.claim import claim
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import every_trial
from pipeline.tracking.client import beside
from pipeline.tracking.destination import Destination, recall, remember
from pipeline.tracking.load_model import load_model
from pipeline.tracking.moved import correct_paths
from pipeline.tracking.store import open_store
from pipeline.tracking.sync import sync
from pipeline.training.worker import run_training
from tests.pipeline.arc_samples import random_task, write_tasks
from tests.pipeline.samples import SMALL
from tests.pipeline.sweep_samples import EXTRA

HERE = Destination()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """An output folder with one trained and delivered sweep, from which each test takes a copy."""
    root = tmp_path_factory.mktemp("trained")
    write_tasks(root / "tasks", [random_task(f"t{i:02d}", i) for i in range(12)])
    training = {**SMALL["training"], "steps": 4, "decode_tasks": 1}
    data = {"dataset": "folder", "folder": str(root / "tasks"), "max_tokens": 128, "dihedral_views": 1}
    sweep = {"arms": ["per_token"], "seeds": [0]}
    experiment = validate_experiment({**SMALL, "data": data, "training": training, "sweep": sweep}, "test")
    prepared, output = prepare(experiment.data, root / "data"), Output(root / "o")
    claim(output.sweep("small"), experiment, EXTRA["data_hash"], False, "")
    remember(output.sweep("small"), HERE, EXTRA)
    for trial in every_trial(experiment):
        folder = output.trial("small", trial.key)
        write_attempt(folder, Attempt(1, "session"))
        run_training(trial.experiment, folder, prepared.folder, torch.device("cpu"))
    deliver(output)
    return output.root


def deliver(output: Output) -> None:
    done = sync(output, "small", None, None, lambda uri, name, sweep: file_report(uri, name, sweep, output.root)[1])
    assert not done.problems, done.problems


def run_of(output: Output) -> str:
    (folder,) = output.sweep("small").glob("trials/*")
    return read_delivery(folder / "mlflow_run.json").run_id


def new_files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_moved_or_copied_folder_works_whole(trained, tmp_path, how, monkeypatch):
    shutil.copytree(trained, tmp_path / "o")
    correct_paths(tmp_path / "o" / "mlflow.db")  # as if it had been made here
    (shutil.move if how == "moved" else shutil.copytree)(tmp_path / "o", tmp_path / "o2")
    before = new_files(tmp_path / "o") if how == "copied" else None
    output = Output(tmp_path / "o2")
    if how == "copied":  # what the copy has is read from the copy
        for path in (tmp_path / "o" / "mlflow-artifacts").rglob("*"):
            path.chmod(0o000) if path.is_file() else None
            path.write_bytes(b"of the original") if path.is_file() else None
    assert load_model(run_of(output), output.tracking_uri) is not None
    good = (output.sweep("small") / "report" / "report.html").read_text()
    made, _ = file_report(output.tracking_uri, HERE.experiment, "small", output.root)
    assert set(made.filed.distributions) == set(made.filed.predictions) == {run_of(output)}
    assert (output.sweep("small") / "report" / "report.html").read_text().count("<svg") == good.count("<svg") > 0

    shutil.rmtree(output.artifacts / run_of(output))  # lost; and its run with it, so that all is written anew
    client = open_store(output.tracking_uri)
    client.delete_run(run_of(output))
    deliver(output)
    assert load_model(run_of(output), output.tracking_uri) is not None
    assert (output.artifacts / run_of(output) / "artifacts" / "model").is_dir()
    if how == "moved":
        assert not (tmp_path / "o").exists()
    else:
        assert new_files(tmp_path / "o") == before


def test_mlflow_itself_finds_the_files_once_a_command_has_written_there(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "o3")
    output = Output(tmp_path / "o3")
    assert correct_paths(output.root / "mlflow.db") > 0
    assert correct_paths(output.root / "mlflow.db") == 0
    from mlflow import MlflowClient

    client = MlflowClient(output.tracking_uri, output.tracking_uri)
    (version,) = client.search_model_versions("name = 'small-per_token'")
    assert version.source == f"{output.artifacts.as_uri()}/{run_of(output)}/artifacts/model"
    files = client.list_artifacts(run_of(output))
    assert {"model", "result.json", "config.json"} <= {file.path for file in files}


def test_lost_files_are_reported(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "o5", ignore=shutil.ignore_patterns("mlflow-artifacts"))
    output = Output(tmp_path / "o5")
    (output.artifacts / run_of(output) / "artifacts").mkdir(parents=True)  # what is here counts, and it is empty
    made, _ = file_report(output.tracking_uri, HERE.experiment, "small", output.root)
    assert made.filed.lost == [run_of(output)]
    assert "The files of 1 of 1 runs are not where MLflow stored them" in made.findings[-1]
    assert made.findings[-1][:40] in (output.sweep("small") / "report" / "report.md").read_text()


def test_a_store_named_by_the_user_is_found_from_everywhere(tmp_path, monkeypatch):
    output = Output(tmp_path / "o")
    output.root.mkdir()
    monkeypatch.chdir(tmp_path)
    for uri, kept in (
        ("sqlite:///o/mlflow.db", None),
        (output.tracking_uri, None),
        ("sqlite:///mlflow.db", f"sqlite:///{tmp_path}/mlflow.db"),
        ("sqlite:////elsewhere/mlflow.db", "sqlite:////elsewhere/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ):
        remember(output.sweep("x"), Destination(uri), {})
        assert recall(output.sweep("x"), None, None)[0].uri == kept


def test_models_are_registered_in_the_store_itself(trained, tmp_path, monkeypatch):
    """MLFLOW_REGISTRY_URI would have them elsewhere, or, where nothing answers, the run left RUNNING."""
    shutil.copytree(trained, tmp_path / "o4")
    output, other = Output(tmp_path / "o4"), Output(tmp_path / "other")
    client = open_store(output.tracking_uri)
    client.delete_run(run_of(output))
    for each in client.search_model_versions("name = 'small-per_token'"):
        client.delete_model_version(each.name, each.version)
    for wrong in (other.tracking_uri, "http://127.0.0.1:9"):
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", wrong)
        before = run_of(output)
        deliver(output)
        assert run_of(output) != before
        client = open_store(output.tracking_uri)
        (version,) = client.search_model_versions("name = 'small-per_token'")
        assert version.run_id == run_of(output)
        assert client.get_run(run_of(output)).info.status == "FINISHED"
        client.delete_run(run_of(output))
        client.delete_model_version(version.name, version.version)
    assert not other.root.exists()


def test_where_files_are(tmp_path):
    database, there = tmp_path / "o" / "mlflow.db", tmp_path / "else" / "mlflow-artifacts" / "1" / "artifacts"
    here = tmp_path / "o" / "mlflow-artifacts" / "1" / "artifacts"
    assert beside(database, there.as_uri()) == here.as_uri()
    there.mkdir(parents=True)
    assert beside(database, there.as_uri()) == there.as_uri()  # there alone
    here.mkdir(parents=True)
    assert beside(database, there.as_uri()) == here.as_uri()  # in both: a copy
    assert beside(database, str(there)) == here.as_uri()
    assert beside(database, here.as_uri()) == here.as_uri()
    for other in ("s3://bucket/mlflow-artifacts/1", "mlflow-artifacts:/1/2", "file:///data/files/1/artifacts"):
        assert beside(database, other) == other


READ = """
import sys
from pipeline import api
from pipeline.tracking.load_model import load_model
store, run_id, mine = sys.argv[1:]
print(load_model(run_id, store))
made = api.report("small", mine, tracking_uri=store, file=False)
assert made.filed.predictions and made.results.finished == 1
"""


def test_a_colleagues_read_only_store_is_read_without_a_lock_file(trained):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        folder = Path(place) / "theirs"
        shutil.copytree(trained, folder)
        (folder / "mlflow.db.lock").unlink(missing_ok=True)
        mine = Path(place) / "mine"
        mine.mkdir()
        mine.chmod(0o777)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH | (0o111 if path.is_dir() else 0))
        words = [sys.executable, "-c", READ, Output(folder).tracking_uri, run_of(Output(folder)), str(mine)]
        if os.getuid() == 0:  # root may write anywhere
            words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
        environment = {**os.environ, "HOME": str(mine), "PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run(words, capture_output=True, text=True, cwd=mine, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert not (folder / "mlflow.db.lock").exists()
        for path in folder.rglob("*"):
            path.chmod(0o755) if path.is_dir() else None
