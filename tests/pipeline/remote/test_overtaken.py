"""An attempt that another one has overtaken: it spoils nothing, and says no more."""

import json

import pytest

from pipeline.layout import TrialFolder
from pipeline.records.attempts import noted_attempts as attempts
from pipeline.remote.index import Stored, checkpoints_in, has_ended
from pipeline.remote.pusher import push_once
from pipeline.remote.trial import RemoteAttempt
from pipeline.running.driver import TrialFailed, run_trial
from pipeline.training.stopping import TrainingStopped
from tests.pipeline.remote.training import die_at, run_attempt, state_at, taken_in, until_put, without_speed
from tests.pipeline.samples import small_experiment


def test_an_overtaken_attempt_puts_no_more_and_stops(remote, data, tmp_path):
    def report(step):
        if step == 4:
            until_put(remote, 4)
            remote.put_attempt(2, "later")

    with pytest.raises(TrainingStopped, match="attempt 1 has been overtaken: attempt 2 is at work"):
        run_attempt(remote, TrialFolder(tmp_path / "one"), data, report)
    assert max(checkpoints_in(remote.index())) == "step-000004"
    assert not has_ended(remote.index())


def test_what_an_overtaken_attempt_puts_all_the_same_spoils_nothing(remote, data, whole, tmp_path, monkeypatch):
    """Between its last look and what it puts another attempt begins, and even ends."""
    with pytest.raises(KeyboardInterrupt):
        run_attempt(remote, TrialFolder(tmp_path / "one"), data, die_at(4, remote))
    index, scratch = dict(remote.index()), TrialFolder(tmp_path / "one").scratch(1, 0)
    run_attempt(remote, TrialFolder(tmp_path / "other"), data, attempt=2)
    ended = remote.index()
    scratch.spool.write_text(scratch.spool.read_text().replace("train/task_loss", "train/other"))
    scratch.result.write_text("{}")
    monkeypatch.setattr(RemoteAttempt, "check_ours", lambda self: None)
    push_once(remote.part(1), scratch, index, {})
    assert remote.part(1).index() == index
    assert remote.index() == ended != index
    driver = TrialFolder(tmp_path / "driver")
    taken_in(remote, driver)
    assert without_speed(driver) == without_speed(whole)
    assert json.loads(driver.result.read_text())["steps"] == 8
    state = state_at(remote, TrialFolder(tmp_path / "seen"), 8)
    assert state == (whole.checkpoints / "step-000008" / "state.safetensors").read_bytes()


def test_every_attempt_is_noted_in_the_storage_and_an_overtaken_one_says_no_more(remote, tmp_path, monkeypatch):
    experiment = small_experiment()
    ends = []

    def fit(experiment, folder, data, train_fn, attempt, verbose, where, user_code):
        ends.pop(0)(attempt)

    def lose(attempt):
        raise RuntimeError("the network is away")

    def be_overtaken(attempt):
        remote.put_attempt(attempt + 1, "elsewhere")
        raise RuntimeError("the network is away")

    def finish(attempt):
        remote.part(attempt).put_index({"result.json": Stored(2, "0" * 64)})

    def run(machine, session):
        run_trial(experiment, TrialFolder(tmp_path / machine), "data", "a:train", session, remote=remote)

    monkeypatch.setattr("pipeline.running.driver._fit", fit)
    ends += [lose, lose]
    with pytest.raises(TrialFailed, match="the network is away"):
        run("one", "first")
    assert remote.attempt() == {"attempt": 2, "session": "first", "failure": "RuntimeError: the network is away"}
    ends += [be_overtaken]
    with pytest.raises(TrialFailed, match="the network is away"):
        run("two", "second")  # not tried again, though it was the first time
    assert remote.attempt() == {"attempt": 4, "session": "elsewhere", "failure": None}
    ends += [finish]
    run("one", "third")
    noted = [(each["attempt"], each["session"]) for each in attempts(TrialFolder(tmp_path / "one"))]
    assert noted == [(1, "first"), (2, "first"), (3, "second"), (5, "third")]
    assert remote.attempts_file.read_text() == TrialFolder(tmp_path / "one").attempts.read_text()
