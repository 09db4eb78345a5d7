"""What is in MLflow of each run, once and in order."""

import json
import math
import sys
import time

import pytest

from pipeline.layout import Output
from pipeline.records.delivery import read_delivery
from pipeline.records.spool import Spool
from pipeline.tracking import shipping
from pipeline.tracking.store import open_store
from tests.pipeline.sweep_samples import EXTRA, experiment, metrics_at, write_snapshot, write_spool
from tests.pipeline.tracking.tracked import forget_what_was_sent, points, runs, tracker_of, trial_of


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return Output(tmp_path_factory.mktemp("tracking"))


@pytest.fixture
def tracker(output):
    return tracker_of(output)


def test_a_run_says_what_it_is(output, tracker):
    trial, folder = trial_of(output, "says")
    delivery = tracker.start_trial(folder, trial, "says", EXTRA)
    run_id = delivery.run_id
    write_spool(trial, folder)
    folder.result.write_text('{"ok": 1}')
    # at steps 0, 10 and 20 two metrics and seven of each of three layers, and three more at the last
    assert tracker.ship(delivery) == 3 * (2 + 3 * 7) + 3
    assert tracker.ship(delivery) == 0
    tracker.end_trial(delivery, "FINISHED")
    assert shipping.has_all(folder, read_delivery(folder.delivery), "FINISHED")
    run = open_store(output.tracking_uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "per_token · s0"
    assert run.data.tags["sweep"] == "says"
    assert run.data.tags["arm"] == run.data.params["arm"] == run.data.params["training.arm"] == "per_token"
    assert run.data.params["data_hash"] == EXTRA["data_hash"]
    assert run.data.tags["mlflow.runColor"] == "#0072B2"
    assert "Known numbers." in run.data.tags["mlflow.note.content"]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.dataset.profile) == ("arc-agi-2", "01234567", '{"train": 8}')
    client = open_store(output.tracking_uri)
    assert {file.path for file in client.list_artifacts(run_id)} == {"config.json", "result.json"}
    config = json.loads((output.artifacts / run_id / "artifacts" / "config.json").read_text())
    assert config == trial.experiment.model_dump(mode="json")
    for name in metrics_at(trial, 20):
        assert points(output, run_id, name)[-1] == (20, metrics_at(trial, 20)[name])


def test_a_clock_that_steps_back_neither_loses_nor_doubles_nor_makes_an_old_value_the_last(
    output, tracker, monkeypatch
):
    trial, folder = trial_of(output, "clock")
    delivery = tracker.start_trial(folder, trial, "clock", EXTRA)
    run_id = delivery.run_id
    for step, seconds in ((0, 2000), (10, 3000), (20, 1000)):
        monkeypatch.setattr(time, "time_ns", lambda seconds=seconds: seconds * 10**9)
        spool = Spool(folder.spool)  # taken up again: what was written under a later time is not written twice
        for each in range(0, step + 1, 10):
            spool.write(each, {"train/task_loss": 10.0 + each})
        tracker.ship(delivery)
    monkeypatch.undo()
    assert sorted(points(output, run_id, "train/task_loss")) == [(0, 10.0), (10, 20.0), (20, 30.0)]
    assert open_store(output.tracking_uri).get_run(run_id).data.metrics["train/task_loss"] == 30.0


def test_a_run_taken_up_with_other_code_says_so(output, tracker, monkeypatch):
    trial, folder = trial_of(output, "code")
    run_id = tracker.start_trial(folder, trial, "code", {**EXTRA, "mlflow.source.git.commit": "first"}).run_id
    tags = open_store(output.tracking_uri).get_run(run_id).data.tags
    assert "resumed_at_git_commit" not in tags
    again = tracker_of(output).start_trial(folder, trial, "code", {**EXTRA, "mlflow.source.git.commit": "second"})
    tags = open_store(output.tracking_uri).get_run(run_id).data.tags
    assert again.run_id == run_id
    assert (tags["mlflow.source.git.commit"], tags["resumed_at_git_commit"]) == ("first", "second")


def test_nan_is_kept_and_infinity_is_the_largest_number(output, tracker):
    trial, folder = trial_of(output, "odd")
    spool = shipping.TrialFolder(folder.root).spool
    spool.parent.mkdir(parents=True, exist_ok=True)
    spool.write_text(
        '{"step": 1, "time_ms": 1, "metrics": {"held_out/loss": 0.5}}\n'
        '{"step": 2, "time_ms": 2, "metrics": {"held_out/loss": "NaN", "a": "inf", "b": "-inf"}}\n'
    )
    delivery = tracker.start_trial(folder, trial, "odd", EXTRA)
    run_id = delivery.run_id
    tracker.end_trial(delivery, "FAILED")
    metrics = open_store(output.tracking_uri).get_run(run_id).data.metrics
    assert math.isnan(metrics["held_out/loss"])
    assert (metrics["a"], metrics["b"]) == (sys.float_info.max, -sys.float_info.max)


def test_a_step_of_more_points_than_a_call_takes_arrives_whole(output, tracker):
    trial, folder = trial_of(output, "wide")
    metrics = {f"m/{i}": float(i) for i in range(1203)}
    folder.root.mkdir(parents=True)
    folder.spool.write_text(
        "".join(json.dumps({"step": step, "time_ms": step, "metrics": metrics}) + "\n" for step in (1, 2))
    )
    delivery = tracker.start_trial(folder, trial, "wide", EXTRA)
    run_id = delivery.run_id
    assert tracker._client.get_run(run_id).data.metrics == metrics
    tracker.end_trial(delivery, "FINISHED")
    assert [step for step, _ in points(output, run_id, "m/1202")] == [1, 2]


def test_each_snapshot_is_drawn_once_and_a_damaged_one_is_named(output, tracker):
    trial, folder = trial_of(output, "drawn")
    write_snapshot(folder, 0)
    delivery = tracker.start_trial(folder, trial, "drawn", EXTRA)
    run_id = delivery.run_id
    tracker.ship(delivery)
    forget_what_was_sent(folder)
    write_snapshot(folder, 10)
    (folder.prototypes / "step-000020.safetensors").write_bytes(b"torn")
    again = tracker_of(output)
    delivery = again.start_trial(folder, trial, "drawn", EXTRA)
    again.end_trial(delivery, "FINISHED")
    client = open_store(output.tracking_uri)
    images = [file.path for file in client.list_artifacts(run_id, "images") if file.path.endswith(".png")]
    assert sorted(int(path.split("+step+")[1].split("+")[0]) for path in images) == [0, 10]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "step-000020" in run.data.tags["unreadable_snapshot"]


def test_the_summary_shows_the_report(output, tracker, tmp_path):
    sample = experiment("summed")
    folder = output.sweep("summed")
    run_id = tracker.start_summary(folder, sample)
    report = tmp_path / "report.md"
    report.write_text("# It is so\n\n![figure](a.png)\n")
    tracker.end_summary("FINISHED", [report])
    again = tracker_of(output)
    assert again.start_summary(folder, sample) == run_id
    again.end_summary("FINISHED", [report])
    (run,) = runs(output, "summed")
    assert (run.info.run_name, run.info.status) == ("summed · summary", "FINISHED")
    assert run.data.tags["role"] == "summary"
    assert run.data.tags["mlflow.note.content"].strip() == "# It is so"
