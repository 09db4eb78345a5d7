"""A trial in a storage: what a worker puts there is whole at any moment, and another machine goes on from it."""

import contextlib
import json
import time

import pytest
import torch

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.spool import Spool, read_spool
from pipeline.remote import pusher
from pipeline.remote.attempt import Changed, RemoteAttempt
from pipeline.remote.index import Stored, checkpoints_in, has_ended, piece_name
from pipeline.remote.pusher import Pusher, cut_in_pieces, push_once
from pipeline.remote.trial import RemoteTrial
from pipeline.remote.worker import restore
from pipeline.storage.storage import StorageError
from pipeline.training import checkpoint
from pipeline.training.build import build_dynamics, build_model
from pipeline.training.checkpoint import load_newest, save_checkpoint
from pipeline.training.stopping import TrainingStopped
from tests.pipeline.object_store import object_store
from tests.pipeline.remote.training import die_at, run_attempt, state_at, taken_in, without_speed
from tests.pipeline.samples import small_experiment

CPU = torch.device("cpu")


def _bytes_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_metrics_are_cut_at_lines(monkeypatch):
    monkeypatch.setattr(pusher, "PIECE_BYTES", 5)
    assert cut_in_pieces(b"", 7) == {}
    assert cut_in_pieces(b"half", 7) == {}
    assert cut_in_pieces(b"ab\ncd\nef\ngh", 100) == {100: b"ab\ncd\n", 106: b"ef\n"}
    assert cut_in_pieces(b"abcd\ncd\nlong line\nx\n", 0) == {0: b"abcd\n", 5: b"cd\nlong line\n", 18: b"x\n"}


def test_a_worker_killed_in_mid_run_is_taken_up_elsewhere_bit_equal(remote, data, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(pusher, "PIECE_BYTES", 2000)  # a few lines
    with pytest.raises(KeyboardInterrupt):
        run_attempt(remote, TrialFolder(tmp_path / "one"), data, die_at(6, remote))
    index = remote.index()
    assert list(checkpoints_in(index)) == ["step-000002", "step-000004", "step-000006"]
    assert not has_ended(index)
    seen = []
    run_attempt(remote, TrialFolder(tmp_path / "trial"), data, lambda step: seen.append(step), attempt=2)
    assert seen == [8]
    assert list((tmp_path / "trial").iterdir()) == []  # all of it is in the storage
    assert remote.part(1).index() is None
    assert remote.part(1).files.files() == {}
    assert has_ended(remote.index())
    state = state_at(remote, TrialFolder(tmp_path / "seen"), 8)
    assert state == (whole.checkpoints / "step-000008" / "state.safetensors").read_bytes()
    driver = TrialFolder(tmp_path / "driver")
    taken_in(remote, driver)
    assert without_speed(driver) == without_speed(whole)
    assert json.loads(driver.predictions.read_text()) == json.loads(whole.predictions.read_text())
    assert _bytes_in(driver.distributions) == _bytes_in(whole.distributions) != {}
    for path in whole.model.iterdir():
        assert (driver.model / path.name).read_bytes() == path.read_bytes()
    assert json.loads(driver.result.read_text())["steps"] == 8
    assert {p.name for p in driver.prototypes.iterdir()} == {p.name for p in whole.prototypes.iterdir()}
    assert not driver.checkpoints.exists()
    assert _bytes_in(driver.distributions) == _bytes_in(whole.distributions) != {}
    assert {p.name for p in driver.model.iterdir()} == {p.name for p in whole.model.iterdir()}


def test_a_damaged_checkpoint_in_the_storage_is_passed_over(remote, data, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_attempt(remote, TrialFolder(tmp_path / "one"), data, die_at(6, remote))
    newest = remote.part(1).files / "checkpoints/step-000006/state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    seen = []
    run_attempt(remote, TrialFolder(tmp_path / "other"), data, lambda step: seen.append(step), attempt=2)
    assert seen == [6, 8]
    driver = TrialFolder(tmp_path / "driver")
    taken_in(remote, driver)
    assert "sha256" in json.loads(driver.result.read_text())["checkpoint_problems"][0]
    state = state_at(remote, TrialFolder(tmp_path / "seen"), 8)
    assert state == (whole.checkpoints / "step-000008" / "state.safetensors").read_bytes()


def test_the_newest_checkpoint_is_that_of_the_last_step_however_many_digits_it_has(remote, tmp_path):
    """A million is told from 999,998 by its number, not by its name: else ranks would go on from different steps."""
    experiment, part, folder = small_experiment(), remote.part(1), TrialFolder(tmp_path / "one")
    dynamics = build_dynamics(build_model(experiment), experiment.training)
    for step in (999_998, 1_000_000):
        save_checkpoint(folder.checkpoints, step, dynamics, experiment.digest(), keep=2)
    remote.put_attempt(1, "now")
    index = {}
    push_once(part, folder, index, {})
    assert list(checkpoints_in(index)) == ["step-999998", "step-1000000"]
    for rank in (0, 1):
        place = TrialFolder(tmp_path / f"rank-{rank}")
        restore(remote, place, experiment.digest(), everything=rank == 0)
        assert load_newest(place.checkpoints, dynamics, experiment.digest()) == (1_000_000, [])


def test_a_checkpoint_is_hashed_once_on_its_way_from_the_storage(remote, data, tmp_path, monkeypatch):
    """While it is downloaded: neither the choice of the newest whole one nor its loading reads it for a hash."""
    with pytest.raises(KeyboardInterrupt):
        run_attempt(remote, TrialFolder(tmp_path / "one"), data, die_at(6, remote))
    seen, hashed, sha256 = [], [], checkpoint._sha256

    def counted(path):
        if not path.parent.name.startswith("."):  # which is being saved
            hashed.append(path.parent.name)
        return sha256(path)

    monkeypatch.setattr(checkpoint, "_sha256", counted)
    run_attempt(remote, TrialFolder(tmp_path / "other"), data, seen.append, attempt=2)
    assert (seen, hashed) == ([8], [])


def test_the_word_that_a_trial_is_to_end_reaches_its_workers(remote, data, tmp_path):
    def report(step):
        if step == 2:
            remote.prune_file.write_bytes(b'{"step": 2}')
        time.sleep(1.0)

    run_attempt(remote, TrialFolder(tmp_path / "one"), data, report)
    assert has_ended(remote.index())
    driver = TrialFolder(tmp_path / "driver")
    taken_in(remote, driver)
    assert not driver.result.exists()
    ended = json.loads(driver.pruned.read_text())["step"]
    assert ended in (2, 4, 6)
    assert [line.step for line in read_spool(driver.spool)[0]][-1] == ended


def test_training_goes_on_while_the_storage_is_away_and_catches_up(data, whole, tmp_path):
    with object_store() as store:
        remote = RemoteTrial(store.storage() / tmp_path.name, "per_token-s0")

        def report(step):
            if step == 2:
                store.stop()
            if step == 8:
                assert list(TrialFolder(tmp_path / "one").scratch(1, 0).checkpoints.iterdir())
                store.start()

        run_attempt(remote, TrialFolder(tmp_path / "one"), data, report)
        state = state_at(remote, TrialFolder(tmp_path / "seen"), 8)
    assert state == (whole.checkpoints / "step-000008" / "state.safetensors").read_bytes()


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), SystemExit("as some libraries raise")])
def test_training_stops_when_the_thread_that_puts_files_has_ended(remote, data, tmp_path, monkeypatch, error):
    pushers = []

    def known(*arguments):
        pushers.append(Pusher(*arguments))
        return pushers[0]

    def report(step):
        if step == 2:
            monkeypatch.setattr("pipeline.remote.pusher.push_once", lambda *_: (_ for _ in ()).throw(error))
        if step == 4:
            pushers[0]._thread.join(30)
            assert not pushers[0]._thread.is_alive()

    monkeypatch.setattr("pipeline.remote.worker.Pusher", known)
    with pytest.raises(TrainingStopped, match=f"step [46]: .*{error}"):
        run_attempt(remote, TrialFolder(tmp_path / "one"), data, report)


def test_training_stops_when_the_storage_is_away_for_too_long(data, tmp_path, monkeypatch):
    pushers = []

    def impatient(*arguments):
        pushers.append(Pusher(*arguments, limit_s=0.1))
        return pushers[0]

    def until_it_gives_up():
        deadline = time.monotonic() + 60
        with contextlib.suppress(StorageError):
            while time.monotonic() < deadline:
                pushers[0].push()
                time.sleep(0.1)

    monkeypatch.setattr("pipeline.remote.worker.Pusher", impatient)
    with object_store() as store:
        remote = RemoteTrial(store.storage() / tmp_path.name, "per_token-s0")

        def report(step):
            if step == 2:
                store.stop()
            if step == 4:
                until_it_gives_up()

        with pytest.raises(TrainingStopped, match=r"step \d: no upload to the storage has succeeded for \d+ s: s3://"):
            run_attempt(remote, TrialFolder(tmp_path / "one"), data, report)


def test_what_is_half_put_is_not_there(remote, tmp_path, monkeypatch):
    folder, index, part = TrialFolder(tmp_path), {}, remote.part(1)
    remote.put_attempt(1, "now")
    Spool(folder.spool).write(1, {"a": 1.0})
    push_once(part, folder, index, {})
    first = dict(index)
    Spool(folder.spool).write(2, {"a": 2.0})
    folder.predictions.write_text("[]")

    def away(self, index):
        raise StorageError("away")

    with monkeypatch.context() as broken:
        broken.setattr(RemoteAttempt, "put_index", away)
        with pytest.raises(StorageError):
            push_once(part, folder, index, {})
    assert remote.index() == index == first
    driver = TrialFolder(tmp_path / "driver")
    taken_in(remote, driver)
    assert [line.step for line in read_spool(driver.spool)[0]] == [1]  # of a piece that has grown since
    push_once(part, folder, index, {})
    taken_in(remote, driver, first)
    assert [line.step for line in read_spool(driver.spool)[0]] == [1, 2]
    assert driver.predictions.exists()
    (part.files / "predictions.json").write_bytes(b"[1]")
    with pytest.raises(Changed):
        taken_in(remote, TrialFolder(tmp_path / "late"))


def test_checkpoints_replaced_while_they_are_put_leave_a_whole_one(remote, tmp_path, monkeypatch):
    def saved(folder, step):
        place = folder.checkpoints / f"step-{step:06d}"
        place.mkdir(parents=True)
        (place / "state.safetensors").write_bytes(b"x")
        (place / "manifest.json").write_bytes(b"y")
        return place

    folder, index, put, part = TrialFolder(tmp_path), {}, {}, remote.part(1)
    saved(folder, 1).rename(tmp_path / "away")
    push_once(part, folder, index, put)
    (tmp_path / "away").rename(folder.checkpoints / "step-000001")
    push_once(part, folder, index, put)
    (folder.checkpoints / "step-000001").rename(tmp_path / "old")
    second = saved(folder, 2)
    upload = pusher.Stored

    def replaced(*found):  # as soon as the first of its files has been put
        if second.exists():
            second.rename(tmp_path / "older")
        return upload(*found)

    monkeypatch.setattr(pusher, "Stored", replaced)
    push_once(part, folder, index, put)
    assert list(checkpoints_in(index)) == ["step-000001"]
    assert len(checkpoints_in(index)["step-000001"]) == 2


def test_an_index_that_is_none_is_named(remote, tmp_path):
    part = remote.part(2)
    remote.put_attempt(2, "now")
    part.index_file.write_bytes(b"[1]")
    with pytest.raises(UserError, match=r"per_token-s0~002\.json: is not the index"):
        remote.index()
    part.put_index({piece_name(0): Stored(3, "0" * 64)})
    (part.files / piece_name(0)).write_bytes(b"abc")
    with pytest.raises(UserError, match=r"000\.jsonl: is not what the index says: it is damaged"):
        restore(remote, TrialFolder(tmp_path / "x"), "digest", everything=True)
    remote.attempt_file(2).write_bytes(b'{"attempt": "x"}')
    with pytest.raises(UserError, match=r"per_token-s0~attempt-002\.json: is not the record of an attempt"):
        remote.index()
