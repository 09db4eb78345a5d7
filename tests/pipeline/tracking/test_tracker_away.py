"""Every point and run is in MLflow once, whatever is killed and whenever the server is away."""

import itertools
import time

import pytest

from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.records.delivery import read_delivery
from pipeline.secrecy import mask
from pipeline.tracking import shipping
from pipeline.tracking.describe import TRIAL
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool
from tests.pipeline.tracking.tracked import down, forget_what_was_sent, points, runs, tracker_of, trial_of


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return Output(tmp_path_factory.mktemp("tracking"))


@pytest.fixture
def tracker(output):
    return tracker_of(output)


def test_no_point_twice_after_a_kill_between_sending_and_remembering(output, tracker):
    trial, folder = trial_of(output, "killed")
    write_spool(trial, folder, (0, 10))
    delivery = tracker.start_trial(folder, trial, "killed", EXTRA)
    run_id = delivery.run_id
    tracker.ship(delivery)
    forget_what_was_sent(folder)
    write_spool(trial, folder, (0, 10, 20))
    again = tracker_of(output)
    delivery = again.start_trial(folder, trial, "killed", EXTRA)
    assert delivery.run_id == run_id
    again.end_trial(delivery, "FINISHED")
    assert [step for step, _ in points(output, run_id, "train/task_loss")] == [0, 10, 20]
    assert len(runs(output, "killed")) == 1


def test_of_a_run_that_has_all_each_metric_is_asked_for_once(output, tracker, monkeypatch):
    """And not once for every thousand points, which of a long run would be all of it, hundreds of times."""
    trial, folder = trial_of(output, "asked")
    write_spool(trial, folder, (0, 10, 20))
    run_id = tracker.start_trial(folder, trial, "asked", EXTRA).run_id
    forget_what_was_sent(folder)
    write_spool(trial, folder, (0, 10, 20, 30))
    monkeypatch.setattr(shipping, "_POINTS_PER_CALL", 30)  # a step in each
    again = tracker_of(output)
    history, asked = again._client.get_metric_history, []

    def counted(run_id, name):
        asked.append(name)
        return history(run_id, name)

    monkeypatch.setattr(again._client, "get_metric_history", counted)
    delivery = again.start_trial(folder, trial, "asked", EXTRA)
    assert delivery.run_id == run_id
    assert sorted(asked) == sorted(set(asked))
    assert [step for step, _ in points(output, run_id, "train/task_loss")] == [0, 10, 20, 30]
    assert not delivery.over
    again.end_trial(delivery, "FINISHED")
    assert delivery.over


def test_a_lost_answer_to_the_creation_makes_no_second_run(output, tracker, monkeypatch):
    trial, folder = trial_of(output, "lost")
    create = tracker._client.create_run

    def lose_the_answer(*args, **more):
        create(*args, **more)
        down()

    monkeypatch.setattr(tracker._client, "create_run", lose_the_answer)
    delivery = tracker.start_trial(folder, trial, "lost", EXTRA)
    assert delivery.run_id == ""
    assert "away" in tracker.problem
    again = tracker_of(output)
    delivery = again.start_trial(folder, trial, "lost", EXTRA)
    run_id = delivery.run_id
    assert run_id
    assert [run.info.run_id for run in runs(output, "lost")] == [run_id]
    assert open_store(output.tracking_uri).get_run(run_id).data.params["seed"] == "0"
    again.end_trial(delivery, "KILLED")


def test_a_lost_answer_makes_no_second_version_of_a_model(output, tracker, monkeypatch):
    trial, folder = trial_of(output, "twice")
    delivery = tracker.start_trial(folder, trial, "twice", EXTRA)
    run_id = delivery.run_id
    create = tracker._client.create_model_version

    def obeyed_twice(name, source, run_id, **more):
        create(name, source, run_id)  # somebody's own, by hand
        create(name, source, run_id, **more)
        return create(name, source, run_id, **more)

    monkeypatch.setattr(tracker._client, "create_model_version", obeyed_twice)
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    folder.result.write_text("{}")
    tracker.end_trial(delivery, "FINISHED")
    assert tracker.problem is None
    versions = open_store(output.tracking_uri).search_model_versions(f"run_id = '{run_id}'")
    numbered = sorted((int(version.version), TRIAL in version.tags) for version in versions)
    assert numbered == [(1, False), (2, True)]


def test_a_server_that_is_away_for_a_while_gets_everything_later(output, tracker, monkeypatch):
    trial, folder = trial_of(output, "away")
    delivery = tracker.start_trial(folder, trial, "away", EXTRA)
    run_id = delivery.run_id
    write_spool(trial, folder, (0, 10))
    send, clock = tracker._client.log_batch, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    tries = []

    def half(*args, **more):  # what it sent arrives, but not the answer
        tries.append(clock[0])
        send(*args, **more)
        down()

    monkeypatch.setattr(tracker._client, "log_batch", half)
    for _ in range(100):
        assert tracker.ship(delivery) == 0
        clock[0] += 0.1
    assert len(tries) == 1  # then all points are there, and later calls find nothing to send
    monkeypatch.setattr(tracker._client, "log_batch", down)
    write_spool(trial, folder, (0, 10, 20))
    for _ in range(300):
        tracker.ship(delivery)
        clock[0] += 1.0
    assert tracker.problem == "the server is away"
    monkeypatch.setattr(tracker._client, "log_batch", send)
    clock[0] += 60.0
    tracker.end_trial(delivery, "FINISHED")
    assert tracker.problem is None
    assert [step for step, _ in points(output, run_id, "train/task_loss")] == [0, 10, 20]


def test_tries_grow_rarer_up_to_a_minute(output, tracker, monkeypatch):
    trial, folder = trial_of(output, "rarer")
    clock, tries = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def refuse(*_args, **_more):
        tries.append(clock[0])
        down()

    monkeypatch.setattr(tracker._client, "create_run", refuse)
    monkeypatch.setattr(tracker._client, "search_runs", refuse)
    delivery = tracker.start_trial(folder, trial, "rarer", EXTRA)
    while clock[0] < 300:
        tracker.ship(delivery)
        clock[0] += 1.0
    gaps = [b - a for a, b in itertools.pairwise(tries)]
    assert gaps == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    monkeypatch.undo()
    assert tracker.close("KILLED", wait_s=0) == {}


def test_close_names_what_could_not_be_delivered_and_leaves_nothing_running(output, tracker, monkeypatch):
    (trial, folder), (other, second) = trials(output, experiment("closing"))[:2]
    tracker.start_summary(output.sweep("closing"), experiment("closing"))
    tracker.start_trial(folder, trial, "closing", EXTRA)
    with monkeypatch.context() as away:
        away.setattr(tracker._client, "set_terminated", down)
        assert folder.root in tracker.close("KILLED", wait_s=0)
        assert not shipping.has_all(folder, read_delivery(folder.delivery), "KILLED")
    tracker.start_trial(second, other, "closing", EXTRA)
    assert tracker.close("KILLED") == {}
    assert {run.info.status for run in runs(output, "closing")} == {"KILLED"}
    assert len(runs(output, "closing")) == 3


def test_a_store_that_cannot_be_reached_is_reported_within_seconds_without_its_password():
    start = time.monotonic()
    with pytest.raises(UserError) as refused:
        Tracker("http://me:s3cr:et@127.0.0.1:9", "tests", None)
    assert time.monotonic() - start < 10
    assert "s3cr" not in str(refused.value)
    assert "127.0.0.1:9" in str(refused.value)
    assert mask("x postgresql://u:p@h/db y") == "x postgresql://u:***@h/db y"
