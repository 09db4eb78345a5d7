"""A sweep in a storage, seen from its driver."""

import json
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.layout import Output, TrialFolder
from pipeline.records.attempts import Attempt, last_attempt
from pipeline.records.attempts import noted_attempts as attempts
from pipeline.records.delivery import DeliveryState, read_delivery
from pipeline.records.spool import Spool, read_spool
from pipeline.remote.pusher import push_once
from pipeline.remote.sweep import RemoteSweep
from pipeline.remote.trial import RemoteTrial
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.trials import Trial, trials_of
from pipeline.storage.lease import Lease
from tests.pipeline.object_store import object_store
from tests.pipeline.samples import SMALL

DELIVERED = json.dumps({"creation_key": "ab" * 16, "run_id": "cd" * 16, "offset": 12, "figures": [], "ended": None})
SHIPPED = json.dumps({"run_id": "cd" * 16, "offset": 12, "figures": [], "ended": None})


@pytest.fixture
def sweep(store, tmp_path):
    sample = validate_experiment({**SMALL, "sweep": {"arms": ["per_token", "task_only"], "seeds": [0]}}, "test")
    return store.storage() / "sweeps" / tmp_path.name, trials_of(sample)


def _enter(sweep, output: Path) -> RemoteSweep:
    storage, trials = sweep
    where = Output(output)
    folders = {trial.key: where.trial("small", trial.key) for trial in trials}
    shared = RemoteSweep(storage, where.sweep("small"), folders)
    shared._lease = Lease(storage / "lease.json", 0.1, 0.5)
    return shared


def _folder(output: Path, trial: Trial) -> TrialFolder:
    return Output(output).trial("small", trial.key)


def test_another_driver_finds_all_that_the_first_one_knew(sweep, tmp_path):
    storage, (trial, other) = sweep
    here, there = tmp_path / "here", tmp_path / "there"
    remote = RemoteTrial(storage / "trials", trial.key)
    with _enter(sweep, here) as shared:
        (Output(here).sweep("small")).mkdir(parents=True, exist_ok=True)
        (Output(here).sweep("small") / "sweep.json").write_text('{"experiment": {}}')
        shared.begin("now")
        scratch, index = TrialFolder(tmp_path / "scratch"), {}
        remote.put_attempt(1, "now")
        Spool(scratch.spool).write(1, {"a": 1.0})
        push_once(remote.part(1), scratch, index, {})
        assert shared.catch_up(0.0) is None
        assert [line.step for line in read_spool(_folder(here, trial).spool)[0]] == [1]
        assert last_attempt(_folder(here, trial)) == Attempt(1, "now")
        Spool(scratch.spool).write(2, {"a": 2.0})
        push_once(remote.part(1), scratch, index, {})
        remote.attempts_file.write_bytes(b'{"attempt": 1, "sources": "abc"}\n')
        remote.put_attempt(1, "now", "out of memory")
        assert shared.catch_up(0.0) is None
        assert [line.step for line in read_spool(_folder(here, trial).spool)[0]] == [1, 2]
        assert _folder(here, trial).failure.read_text() == "out of memory"
        _folder(here, trial).delivery.write_text(DELIVERED)
        with pytest.raises(UserError, match="in use by process"), _enter(sweep, there):
            pass
    with _enter(sweep, there):
        assert (Output(there).sweep("small") / "sweep.json").read_text() == '{"experiment": {}}'
        assert [line.step for line in read_spool(_folder(there, trial).spool)[0]] == [1, 2]
        assert _folder(there, trial).delivery.read_text() == DELIVERED
        assert last_attempt(_folder(there, trial)) == Attempt(1, "now")
        assert attempts(_folder(there, trial)) == [{"attempt": 1, "sources": "abc"}]
        assert not _folder(there, other).spool.exists()
    (Output(there).sweep("small") / "sweep.json").write_text('{"experiment": {"name": "x"}}')
    with pytest.raises(UserError, match="holds another sweep than"), _enter(sweep, there):
        pass


def test_a_driver_that_is_gone_at_once_leaves_the_keys_by_which_its_runs_are_found(sweep, tmp_path):
    """Or the next one would begin others, and these would be left RUNNING for ever."""
    _, trials = sweep

    def memories(place):
        folder = Output(place).sweep("small")
        return [
            (folder / "mlflow_summary.json").read_text(),
            *(_folder(place, each).delivery.read_text() for each in trials),
        ]

    with _enter(sweep, tmp_path / "here") as gone:
        write_whole(Output(tmp_path / "here").sweep("small") / "sweep.json", '{"experiment": {}}')
        gone.begin("gone")
        keys = memories(tmp_path / "here")
        assert len(set(keys)) == 3
        _enter(sweep, tmp_path / "there")._recall()
        assert memories(tmp_path / "there") == keys


def test_a_sweep_whose_storage_is_away_is_refused_before_it_starts(tmp_path):
    with object_store() as store:
        sweep = store.storage() / "sweeps" / "x", ()
        store.stop()
        with pytest.raises(UserError, match=r"--storage: s3://bucket/.*Nothing was started"), _enter(sweep, tmp_path):
            pass


def test_a_driver_that_was_taken_for_dead_says_nothing_more(sweep, tmp_path):
    storage, (trial, _) = sweep
    with _enter(sweep, tmp_path / "here") as sleeper:
        folder = Output(tmp_path / "here").sweep("small")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.json").write_text('{"experiment": {}}')
        sleeper.begin("sleeper's")
        assert sleeper.taken_by is None
        (storage / "lease.json").write_bytes(b'{"token": "other", "pid": 12, "host": "elsewhere", "beats": 1}')
        deadline = time.monotonic() + 30
        while sleeper.taken_by is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert sleeper.taken_by.startswith("was taken over by process 12 on elsewhere, because")
        write_whole(_folder(tmp_path / "here", trial).delivery, '{"creation_key": "abababababababababababababababab"}')
    assert '"abab' not in (storage / "tracked.json").read_text()
    assert b"elsewhere" in (storage / "lease.json").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"mlflow_summary.json": '{"creation_key": "x\' AND tags.a = \'b"}'},
        {"mlflow_summary.json": "[" * 100_000},
        {"mlflow_summary.json": 1},
        {"trials/{key}/mlflow_run.json": DELIVERED.replace("12", "1e999")},
        {"trials/{key}/mlflow_run.json": DELIVERED.replace("[]", '["../../x"]')},
        {"trials/{key}/shipped.json": '{"offset": 1e999}'},
        {"trials/{key}/shipped.json": SHIPPED.replace("[]", '["../../x"]')},
        {"trials/{key}/prune.json": '{"step": -1}'},
    ],
)
def test_what_was_changed_in_the_storage_is_not_taken_back(sweep, tmp_path, changes):
    storage, (trial, _) = sweep
    text = json.dumps({name.format(key=trial.key): each for name, each in changes.items()})
    (storage / "tracked.json").write_bytes(text.encode())
    with pytest.raises(UserError, match=r"tracked\.json: is damaged \("), _enter(sweep, tmp_path / "out"):
        pass
    assert list((tmp_path / "out").rglob("*.json")) == []


def test_files_that_are_none_of_the_sweeps_are_left_where_they_are(sweep, tmp_path):
    storage, _ = sweep
    outside = {str(tmp_path / "planted"): "x", "../planted": "x", "trials/other/result.json": "x"}
    (storage / "tracked.json").write_bytes(json.dumps(outside).encode())
    (storage / "sweep.json").write_bytes(b'{"experiment": {}}')
    with _enter(sweep, tmp_path / "out"):
        pass
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"sweep.json"}
    (storage / "sweep.json").write_bytes(b"[" * 200_000)
    with (
        pytest.raises(UserError, match=r"sweep\.json: is not valid JSON.*nested deeper"),
        _enter(sweep, tmp_path / "o"),
    ):
        pass


def test_a_sweep_whose_reader_ends_by_an_error_is_no_longer_driven(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.remote.sweep._EVERY_S", 0.05)
    with _enter(sweep, tmp_path / "here") as shared:
        write_whole(Output(tmp_path / "here").sweep("small") / "sweep.json", "{}")
        shared.begin("now")

        def breaks():
            raise RecursionError("too deep")

        monkeypatch.setattr(shared, "_fetch", breaks)
        deadline = time.monotonic() + 30
        while shared.taken_by is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "cannot be followed any longer" in shared.taken_by
        assert "RecursionError: too deep" in shared.taken_by


def test_what_an_older_version_put_of_the_deliveries_is_taken_back(sweep, tmp_path):
    storage, (trial, _) = sweep
    place = f"trials/{trial.key}"
    run = json.dumps({"creation_key": "ab" * 16, "run_id": "cd" * 16, "described": "cd" * 16})
    (storage / "tracked.json").write_bytes(
        json.dumps({f"{place}/mlflow_run.json": run, f"{place}/shipped.json": SHIPPED}).encode()
    )
    (storage / "sweep.json").write_bytes(b'{"experiment": {}}')
    with _enter(sweep, tmp_path / "out"):
        known = read_delivery(_folder(tmp_path / "out", trial).delivery)
    assert known == DeliveryState("ab" * 16, "cd" * 16, 12, [], None)
