"""A trained model comes back from MLflow alone and draws what it drew at the end of training."""

import json
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.arc import load_corpus
from pipeline.data.shards import prepare
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import Trial
from pipeline.tracking.load_model import load_model
from pipeline.tracking.model_registry import model_name, register_model
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from pipeline.training.build import build_model
from pipeline.training.distributions import last_distributions, pieces_in
from pipeline.training.model_file import open_model, save_model
from pipeline.training.worker import run_training
from tests.pipeline.samples import SMALL, small_experiment
from tests.pipeline.sweep_samples import EXTRA


def _easy_tasks(folder):
    """Tasks that are learnt in seconds: rows of one colour, of another length in each task; the answer is one cell."""
    folder.mkdir()
    for number in range(10):
        pairs = [{"input": [[c] * (number + 1)], "output": [[c]]} for c in range(3)]
        (folder / f"task{number}.json").write_text(json.dumps({"train": pairs[:2], "test": pairs[2:]}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(output, run id, predictions, tasks by id) of a small run, whose folder has been removed."""
    root = tmp_path_factory.mktemp("registered")
    _easy_tasks(root / "tasks")
    changes = {"steps": 40, "batch_tokens": 128, "log_every": 40, "evaluate_every": 40, "learning_rate": 0.03}
    training = {**SMALL["training"], **changes, "arm": "aggregated", "check_replicas_every": 0}
    data = {"dataset": "folder", "folder": str(root / "tasks"), "max_tokens": 64, "dihedral_views": 1}
    experiment = validate_experiment({**SMALL, "data": data, "training": training}, "test")
    data, output = prepare(experiment.data, root / "data"), Output(root / "runs")
    folder = output.trial("easy", "aggregated-s0")
    run_training(experiment, folder, data.folder, torch.device("cpu"))
    predictions = json.loads(folder.predictions.read_text())
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    delivery = tracker.start_trial(folder, Trial(key="aggregated-s0", experiment=experiment), "easy", EXTRA)
    run_id = delivery.run_id
    tracker.end_trial(delivery, "FINISHED")
    assert not tracker.close("FINISHED")
    shutil.rmtree(output.sweep("easy"))
    tasks = {task.task_id: task for task in load_corpus(experiment.data).train}
    return output, run_id, predictions, tasks


def test_the_model_of_a_run_draws_what_was_predicted(trained):
    output, run_id, predictions, tasks = trained
    model = load_model(run_id, output.tracking_uri)
    assert model.experiment.training.arm == "aggregated"
    assert any(each["prediction"] is not None for each in predictions)  # it has learnt to draw a grid
    for each in predictions:
        assert model.predict(tasks[each["task_id"]], each["pair"]) == each["prediction"]


def test_a_task_may_hold_arrays_as_a_notebook_does(trained):
    output, run_id, predictions, tasks = trained
    model = load_model(run_id, output.tracking_uri)
    each = predictions[0]
    task = tasks[each["task_id"]]
    value = {
        "train": [{"input": np.array(p.input), "output": torch.tensor(p.output)} for p in task.train],
        "test": tuple({"input": [np.array(row) for row in p.input]} for p in task.test),
    }
    assert model.predict(value, each["pair"]) == each["prediction"]
    value["train"][0]["input"] = np.array([[0.5]])
    with pytest.raises(UserError, match=r"task given, train pair 0, input, cell \(row 0, column 0\): found 0\.5"):
        model.predict(value)
    value["train"][0]["input"] = object()
    with pytest.raises(UserError, match="task given: is not ARC JSON"):
        model.predict(value)


def test_mlflow_loads_it_from_the_run_and_from_the_registry(trained, monkeypatch):
    import mlflow

    output, run_id, predictions, tasks = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", output.tracking_uri)
    each = predictions[0]
    task = tasks[each["task_id"]]
    value = {
        "train": [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in task.train],
        "test": [{"input": pair.input.tolist()} for pair in task.test],
    }
    for uri in (f"runs:/{run_id}/model", "models:/easy-aggregated/1"):
        assert mlflow.pyfunc.load_model(uri).predict(value) == each["prediction"]


def test_a_run_is_registered_once_and_says_what_it_ran_on(trained):
    output, run_id, *_ = trained
    client = open_store(output.tracking_uri)
    (version,) = client.search_model_versions(f"run_id = '{run_id}'")
    assert version.name == "easy-aggregated"
    assert version.tags["seed"] == "0"
    register_model(client, run_id)
    assert len(client.search_model_versions(f"run_id = '{run_id}'")) == 1
    assert client.get_run(run_id).data.tags["environment.torch"] == metadata.version("torch")
    assert model_name("easy", "pkg.costs:MINE") == "easy-pkg.costs.MINE"


def test_distributions_and_memory_are_tracked(trained):
    output, run_id, *_ = trained
    client = open_store(output.tracking_uri)
    names = {file.path for file in client.list_artifacts(run_id)}
    assert {"distributions", "model", "predictions.json", "result.json"} <= names
    path = Path(client.download_artifacts(run_id, "distributions", str(output.root)))
    newest = last_distributions(pieces_in(path)[-1].read_text())
    assert newest.step == 40
    assert sorted(newest.goodness) == [0, 1]
    counted = {layer: part.counts.sum() for layer, part in newest.cost.items()}
    assert counted[0] == counted[1] == newest.goodness[0].counts.sum()
    last = client.get_run(run_id).data.metrics
    good = sum(part.counts[1:][part.edges >= -1].sum() for part in newest.goodness.values())
    mean = (last["fraction_good/L0"] + last["fraction_good/L1"]) / 2
    assert good / sum(counted.values()) == pytest.approx(mean)
    assert last["speed/peak_memory_mib"] > 50


def test_what_is_no_model_is_refused(trained, tmp_path):
    output, _, _, tasks = trained
    with pytest.raises(UserError, match="run nosuch: its model cannot be loaded"):
        load_model("nosuch", output.tracking_uri)
    experiment = small_experiment(arm="elsewhere.costs:MINE")
    save_model(tmp_path / "model", build_model(small_experiment()), experiment)
    model = open_model(tmp_path / "model")  # although that arm cannot be imported here
    with pytest.raises(UserError, match="no test pair 7"):
        model.predict(next(iter(tasks.values())), 7)
    with pytest.raises(UserError, match="there is no `test`"):
        model.predict({"train": [{"input": [[1]], "output": [[1]]}]})
    with pytest.raises(UserError, match="found str; expected a mapping"):
        model.predict("task")
    big = next(iter(tasks.values()))
    with pytest.raises(UserError, match="at most 128"):
        model.predict(replace(big, train=big.train * 20))
    weights = tmp_path / "model" / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(UserError, match="has been altered"):
        open_model(tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text("[]")
    with pytest.raises(UserError, match="not a readable model"):
        open_model(tmp_path / "model")


def test_a_model_saved_before_a_setting_or_a_metric_was_renamed_is_loaded(tmp_path):
    experiment = small_experiment()
    model = build_model(experiment, torch.device("cpu"))
    save_model(tmp_path / "model", model, experiment)
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    del card["experiment"]["training"]["score_evaluation"]
    asha = {"asha": {"metric": "eval/loss", "grace_steps": 2}}
    space = {"training.learning_rate": {"uniform": [0.001, 0.002]}}
    sweep = {"arms": ["task_only"], "seeds": [0], "search": {"samples": 2, "space": space}, "scheduler": asha}
    card["experiment"]["sweep"] = sweep
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    loaded = open_model(tmp_path / "model")
    assert loaded.experiment.training.score_evaluation == "end"
    assert loaded.experiment.sweep.scheduler.asha.metric == "held_out/loss"


@pytest.mark.parametrize("place", ["file_hash", "flush", "python_version"])
def test_a_model_that_is_not_written_whole_takes_no_other_ones_place(tmp_path, monkeypatch, place):
    experiment = small_experiment()
    save_model(tmp_path / "model", build_model(experiment, torch.device("cpu")), experiment)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert len(before) == 3

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"pipeline.training.model_file.{place}", full)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path / "model", build_model(experiment, torch.device("cpu")), experiment)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / ".model.aside").mkdir()
    (tmp_path / ".model.aside" / "left.txt").write_text("by a killed process")
    save_model(tmp_path / "model", build_model(experiment, torch.device("cpu")), experiment)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "MLmodel",
        "model",
        "model.json",
        "weights.safetensors",
    ]
