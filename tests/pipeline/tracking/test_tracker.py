"""Every point, figure and run is in MLflow once, whatever is killed and whenever the server is away."""

import itertools
import json
import math
import sys
import time

import pytest

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.records.spool import Spool
from pipeline.secrecy import mask
from pipeline.tracking import shipping
from pipeline.tracking.describe import TRIAL
from pipeline.tracking.mlflow_run import write_memory
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from tests.pipeline.sweep_samples import EXTRA, experiment, metrics_at, trials, write_snapshot, write_spool


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return Output(tmp_path_factory.mktemp("tracking"))


def _tracker(output):
    return Tracker(output.tracking_uri, "tests", output.artifacts)


@pytest.fixture
def tracker(output):
    return _tracker(output)


def _trial(output, name):
    return trials(output, experiment(name))[0]


def _points(output, run_id, name):
    return [(point.step, point.value) for point in open_store(output.tracking_uri).get_metric_history(run_id, name)]


def _runs(output, name):
    client = open_store(output.tracking_uri)
    found = client.get_experiment_by_name("tests")
    return client.search_runs([found.experiment_id], f"tags.sweep = '{name}'")


def _down(*_args, **_more):
    raise ConnectionError("the server is away")


def test_a_run_says_what_it_is(output, tracker):
    trial, folder = _trial(output, "says")
    run_id = tracker.start_trial(folder, trial, "says", EXTRA)
    write_spool(trial, folder)
    folder.result.write_text('{"ok": 1}')
    # at steps 0, 10 and 20 two metrics and seven of each of three layers, and two more at the last
    assert tracker.ship(folder) == 3 * (2 + 3 * 7) + 2
    assert tracker.ship(folder) == 0
    tracker.end_trial(folder, "FINISHED")
    assert shipping.has_all(folder, run_id, "FINISHED")
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
        assert _points(output, run_id, name)[-1] == (20, metrics_at(trial, 20)[name])


def test_no_point_twice_after_a_kill_between_sending_and_remembering(output, tracker):
    trial, folder = _trial(output, "killed")
    write_spool(trial, folder, (0, 10))
    run_id = tracker.start_trial(folder, trial, "killed", EXTRA)
    tracker.ship(folder)
    memory = shipping.shipped(folder, run_id)
    write_memory(folder.shipped, {**memory, "offset": 0})  # as if it had died before it could remember
    write_spool(trial, folder, (0, 10, 20))
    again = _tracker(output)
    assert again.start_trial(folder, trial, "killed", EXTRA) == run_id
    again.end_trial(folder, "FINISHED")
    assert [step for step, _ in _points(output, run_id, "train/task_loss")] == [0, 10, 20]
    assert len(_runs(output, "killed")) == 1


def test_a_clock_that_steps_back_neither_loses_nor_doubles_nor_makes_an_old_value_the_last(
    output, tracker, monkeypatch
):
    trial, folder = _trial(output, "clock")
    run_id = tracker.start_trial(folder, trial, "clock", EXTRA)
    for step, seconds in ((0, 2000), (10, 3000), (20, 1000)):
        monkeypatch.setattr(time, "time_ns", lambda seconds=seconds: seconds * 10**9)
        spool = Spool(folder.spool)  # taken up again: what was written under a later time is not written twice
        for each in range(0, step + 1, 10):
            spool.write(each, {"train/task_loss": 10.0 + each})
        tracker.ship(folder)
    monkeypatch.undo()
    assert sorted(_points(output, run_id, "train/task_loss")) == [(0, 10.0), (10, 20.0), (20, 30.0)]
    assert open_store(output.tracking_uri).get_run(run_id).data.metrics["train/task_loss"] == 30.0


def test_a_run_taken_up_with_other_code_says_so(output, tracker, monkeypatch):
    trial, folder = _trial(output, "code")
    run_id = tracker.start_trial(folder, trial, "code", {**EXTRA, "mlflow.source.git.commit": "first"})
    tags = open_store(output.tracking_uri).get_run(run_id).data.tags
    assert "resumed_at_git_commit" not in tags
    again = _tracker(output).start_trial(folder, trial, "code", {**EXTRA, "mlflow.source.git.commit": "second"})
    tags = open_store(output.tracking_uri).get_run(run_id).data.tags
    assert again == run_id
    assert (tags["mlflow.source.git.commit"], tags["resumed_at_git_commit"]) == ("first", "second")


def test_a_lost_answer_to_the_creation_makes_no_second_run(output, tracker, monkeypatch):
    trial, folder = _trial(output, "lost")
    create = tracker._client.create_run

    def lose_the_answer(*args, **more):
        create(*args, **more)
        _down()

    monkeypatch.setattr(tracker._client, "create_run", lose_the_answer)
    assert tracker.start_trial(folder, trial, "lost", EXTRA) == ""
    assert "away" in tracker.problem
    again = _tracker(output)
    run_id = again.start_trial(folder, trial, "lost", EXTRA)
    assert run_id
    assert [run.info.run_id for run in _runs(output, "lost")] == [run_id]
    assert open_store(output.tracking_uri).get_run(run_id).data.params["seed"] == "0"
    again.end_trial(folder, "KILLED")


def test_a_lost_answer_makes_no_second_version_of_a_model(output, tracker, monkeypatch):
    trial, folder = _trial(output, "twice")
    run_id = tracker.start_trial(folder, trial, "twice", EXTRA)
    create = tracker._client.create_model_version

    def obeyed_twice(name, source, run_id, **more):
        create(name, source, run_id)  # somebody's own, by hand
        create(name, source, run_id, **more)
        return create(name, source, run_id, **more)

    monkeypatch.setattr(tracker._client, "create_model_version", obeyed_twice)
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    folder.result.write_text("{}")
    tracker.end_trial(folder, "FINISHED")
    assert tracker.problem is None
    versions = open_store(output.tracking_uri).search_model_versions(f"run_id = '{run_id}'")
    found = sorted((int(version.version), TRIAL in version.tags) for version in versions)
    assert found == [(1, False), (2, True)]


def test_a_server_that_is_away_for_a_while_gets_everything_later(output, tracker, monkeypatch):
    trial, folder = _trial(output, "away")
    run_id = tracker.start_trial(folder, trial, "away", EXTRA)
    write_spool(trial, folder, (0, 10))
    send, clock = tracker._client.log_batch, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    tries = []

    def half(*args, **more):  # what it sent arrives, but not the answer
        tries.append(clock[0])
        send(*args, **more)
        _down()

    monkeypatch.setattr(tracker._client, "log_batch", half)
    for _ in range(100):
        assert tracker.ship(folder) == 0
        clock[0] += 0.1
    assert len(tries) == 1  # then all points are there, and later calls find nothing to send
    monkeypatch.setattr(tracker._client, "log_batch", _down)
    write_spool(trial, folder, (0, 10, 20))
    for _ in range(300):
        tracker.ship(folder)
        clock[0] += 1.0
    assert tracker.problem == "the server is away"
    monkeypatch.setattr(tracker._client, "log_batch", send)
    clock[0] += 60.0
    tracker.end_trial(folder, "FINISHED")
    assert tracker.problem is None
    assert [step for step, _ in _points(output, run_id, "train/task_loss")] == [0, 10, 20]


def test_tries_grow_rarer_up_to_a_minute(output, tracker, monkeypatch):
    trial, folder = _trial(output, "rarer")
    clock, tries = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def refuse(*_args, **_more):
        tries.append(clock[0])
        _down()

    monkeypatch.setattr(tracker._client, "create_run", refuse)
    monkeypatch.setattr(tracker._client, "search_runs", refuse)
    tracker.start_trial(folder, trial, "rarer", EXTRA)
    while clock[0] < 300:
        tracker.ship(folder)
        clock[0] += 1.0
    gaps = [b - a for a, b in itertools.pairwise(tries)]
    assert gaps == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    monkeypatch.undo()
    assert tracker.close("KILLED", wait_s=0) == {}


def test_close_names_what_could_not_be_delivered_and_leaves_nothing_running(output, tracker, monkeypatch):
    (trial, folder), (other, second) = trials(output, experiment("closing"))[:2]
    tracker.start_summary(output.sweep("closing"), experiment("closing"))
    run_id = tracker.start_trial(folder, trial, "closing", EXTRA)
    with monkeypatch.context() as away:
        away.setattr(tracker._client, "set_terminated", _down)
        assert folder.root in tracker.close("KILLED", wait_s=0)
        assert not shipping.has_all(folder, run_id, "KILLED")
    tracker.start_trial(second, other, "closing", EXTRA)
    assert tracker.close("KILLED") == {}
    assert {run.info.status for run in _runs(output, "closing")} == {"KILLED"}
    assert len(_runs(output, "closing")) == 3


def test_nan_is_kept_and_infinity_is_the_largest_number(output, tracker):
    trial, folder = _trial(output, "odd")
    spool = shipping.TrialFolder(folder.root).spool
    spool.parent.mkdir(parents=True, exist_ok=True)
    spool.write_text(
        '{"step": 1, "time_ms": 1, "metrics": {"eval/loss": 0.5}}\n'
        '{"step": 2, "time_ms": 2, "metrics": {"eval/loss": "NaN", "a": "inf", "b": "-inf"}}\n'
    )
    run_id = tracker.start_trial(folder, trial, "odd", EXTRA)
    tracker.end_trial(folder, "FAILED")
    metrics = open_store(output.tracking_uri).get_run(run_id).data.metrics
    assert math.isnan(metrics["eval/loss"])
    assert (metrics["a"], metrics["b"]) == (sys.float_info.max, -sys.float_info.max)


def test_a_step_of_more_points_than_a_call_takes_arrives_whole(output, tracker):
    trial, folder = _trial(output, "wide")
    metrics = {f"m/{i}": float(i) for i in range(1203)}
    folder.root.mkdir(parents=True)
    folder.spool.write_text(
        "".join(json.dumps({"step": step, "time_ms": step, "metrics": metrics}) + "\n" for step in (1, 2))
    )
    run_id = tracker.start_trial(folder, trial, "wide", EXTRA)
    assert tracker._client.get_run(run_id).data.metrics == metrics
    tracker.end_trial(folder, "FINISHED")
    assert [step for step, _ in _points(output, run_id, "m/1202")] == [1, 2]


def test_each_snapshot_is_drawn_once_and_a_damaged_one_is_named(output, tracker):
    trial, folder = _trial(output, "drawn")
    write_snapshot(folder, 0)
    run_id = tracker.start_trial(folder, trial, "drawn", EXTRA)
    tracker.ship(folder)
    folder.shipped.unlink()  # died before it could remember
    write_snapshot(folder, 10)
    (folder.prototypes / "step-000020.safetensors").write_bytes(b"torn")
    again = _tracker(output)
    again.start_trial(folder, trial, "drawn", EXTRA)
    again.end_trial(folder, "FINISHED")
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
    again = _tracker(output)
    assert again.start_summary(folder, sample) == run_id
    again.end_summary("FINISHED", [report])
    (run,) = _runs(output, "summed")
    assert (run.info.run_name, run.info.status) == ("summed · summary", "FINISHED")
    assert run.data.tags["role"] == "summary"
    assert run.data.tags["mlflow.note.content"].strip() == "# It is so"


def test_a_store_that_cannot_be_reached_is_said_within_seconds_without_its_password():
    start = time.monotonic()
    with pytest.raises(UserError) as refused:
        Tracker("http://me:s3cr:et@127.0.0.1:9", "tests", None)
    assert time.monotonic() - start < 10
    assert "s3cr" not in str(refused.value)
    assert "127.0.0.1:9" in str(refused.value)
    assert mask("x postgresql://u:p@h/db y") == "x postgresql://u:***@h/db y"
