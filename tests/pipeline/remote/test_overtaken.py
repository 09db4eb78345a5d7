"""An attempt that another one has overtaken: it spoils nothing, and says no more."""

import json
import threading

import pytest

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.attempts import noted_attempts as attempts
from pipeline.remote.attempt import Overtaken, RemoteAttempt
from pipeline.remote.attempt_record import MOST_ATTEMPTS
from pipeline.remote.index import Stored, checkpoints_in, has_ended
from pipeline.remote.pusher import push_once
from pipeline.remote.trial import RemoteTrial
from pipeline.running.driver import TrialFailed, run_trial
from pipeline.running.trial_spec import TrialSpec
from pipeline.storage.creating import NoConditionalPut
from pipeline.storage.opening import open_storage
from pipeline.storage.storage import location
from pipeline.training.stopping import TrainingStopped
from tests.pipeline.remote.training import die_at, run_attempt, state_at, taken_in, until_put, without_speed
from tests.pipeline.samples import small_experiment


def spec_of(remote, folder, session):
    """A trial in a storage, driven from a folder of its own."""
    trials = location(remote.trials)
    return TrialSpec(remote.key, small_experiment(), TrialFolder(folder), "data", "a:train", session, trials=trials)


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
    ends = []

    def fit(spec):
        ends.pop(0)(spec.attempt)

    def lose(attempt):
        raise RuntimeError("the network is away")

    def be_overtaken(attempt):
        remote.put_attempt(attempt + 1, "elsewhere")
        raise RuntimeError("the network is away")

    def finish(attempt):
        remote.part(attempt).put_index({"result.json": Stored(2, "0" * 64)})

    def run(machine, session):
        run_trial(spec_of(remote, tmp_path / machine, session))

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


@pytest.fixture(params=["s3", "folder"])
def place(request, remote, tmp_path):
    """A trial in an object store, and one in a folder."""
    return remote if request.param == "s3" else RemoteTrial(open_storage(str(tmp_path / "shared")), remote.key)


def _race(place, tmp_path, monkeypatch):
    """Two drivers both see that attempt 1 was the last, and then each begin another. Which began, and which failed."""
    place.put_attempt(1, "before")
    both_saw, began, failed = threading.Barrier(2), [], []
    seen = RemoteTrial.attempt

    def attempt(self, last=None):
        number = seen(self, last)
        both_saw.wait(20)
        return number

    def fit(spec):
        began.append((spec.folder.root.name, spec.attempt))
        place.part(spec.attempt).put_index({"result.json": Stored(2, "0" * 64)})

    def drive(name):
        try:
            run_trial(spec_of(place, tmp_path / name, name))
        except TrialFailed as error:
            failed.append((name, str(error)))

    with monkeypatch.context() as patched:
        patched.setattr(RemoteTrial, "attempt", attempt)
        patched.setattr(RemoteTrial, "index", lambda self: self.part(2).index())
        patched.setattr("pipeline.running.driver._fit", fit)
        threads = [threading.Thread(target=drive, args=(name,)) for name in ("one", "two")]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
    return began, failed


def test_of_two_drivers_that_saw_the_same_last_attempt_one_begins_the_next(place, tmp_path, monkeypatch):
    began, failed = _race(place, tmp_path, monkeypatch)
    ((winner, number),) = began
    ((loser, reason),) = failed
    assert {winner, loser} == {"one", "two"}
    assert number == 2
    assert "attempt 2 was begun by another driver" in reason
    assert place.attempt() == {"attempt": 2, "session": winner, "failure": None}
    assert TrialFolder(tmp_path / loser).failure.read_text() == reason
    assert [each["session"] for each in attempts(TrialFolder(tmp_path / winner))] == [winner]


def test_without_a_put_on_a_condition_both_begin_it(place, tmp_path, monkeypatch):
    """What remains where the storage knows no such put: the lease alone keeps two drivers apart."""

    def refuse(file, data):
        raise NoConditionalPut("no such put")

    monkeypatch.setattr("pipeline.remote.trial.create", refuse)
    began, failed = _race(place, tmp_path, monkeypatch)
    assert sorted(began) == [("one", 2), ("two", 2)]
    assert failed == []


def test_a_number_whose_answer_was_lost_is_not_taken_for_anothers(place):
    assert place.take_attempt("now", 0, "token") == 1
    assert place.take_attempt("now", 0, "token") == 1  # repeated, because no answer came
    with pytest.raises(Overtaken, match="attempt 1 was begun by another driver"):
        place.take_attempt("now", 0, "another")  # of one command too: of a driver that was given up


def test_what_an_older_version_wrote_of_the_last_attempt_counts(place):
    place.attempt_file(0).write_bytes(b'{"attempt": 3, "session": "old", "failure": null}')
    assert place.attempt() == {"attempt": 3, "session": "old", "failure": None}
    assert place.take_attempt("new", 3, "token") == 4
    assert place.attempt() == {"attempt": 4, "session": "new", "failure": None}
    with pytest.raises(Overtaken, match="attempt 3 has been overtaken: attempt 4 is at work"):
        place.part(3).check_ours()
    place.part(4).check_ours()


def test_there_are_no_more_attempts_than_names_for_them(place):
    with pytest.raises(UserError, match=r"attempt-9999\.json: is attempt 9,999; expected at most 9,999"):
        place.take_attempt("now", MOST_ATTEMPTS, "token")
