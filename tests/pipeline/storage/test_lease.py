"""Of all drivers that want a sweep in a storage one has it, and knows when it has it no longer."""

import json
import threading
import time

import pytest

from pipeline.errors import UserError
from pipeline.storage import lease
from pipeline.storage.creating import NoConditionalPut, create
from pipeline.storage.lease import Lease
from pipeline.storage.opening import open_storage
from tests.pipeline.object_store import object_store


@pytest.fixture(scope="module")
def store():
    with object_store() as running:
        yield running


@pytest.fixture(params=["s3", "folder"])
def storage(request, tmp_path):
    if request.param == "folder":
        return open_storage(str(tmp_path / "shared")) / "test"
    return request.getfixturevalue("store").storage() / tmp_path.name


def _lost(held, seconds=30.0):
    deadline = time.monotonic() + seconds
    while held.lost is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return held.lost


def test_of_many_that_create_a_file_one_alone_does(storage):
    start, made = threading.Barrier(8), []

    def make(name):
        start.wait()
        made.append((create(storage / "claims" / "000001.json", name), name))

    threads = [threading.Thread(target=make, args=(str(i).encode(),)) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(done for done, _ in made) == [False] * 7 + [True]
    assert (storage / "claims" / "000001.json").read_bytes() == dict(made)[True]
    assert list((storage / "claims").files()) == ["000001.json"]


def _race(storage, monkeypatch):
    """Two drivers that both saw no holder; the first one's writes land, with a pause longer than it looks for others,
    only after the second one has entered. Who entered."""
    file, entered, both_saw, first_in = storage / "lease.json", [], threading.Barrier(2), threading.Event()
    seen = Lease._wait_for_silence

    def wait(self):
        newest = seen(self)
        both_saw.wait(20)
        if self._me["host"] == "late":
            first_in.wait(20)
        return newest

    monkeypatch.setattr(Lease, "_wait_for_silence", wait)

    def drive(name):
        held = Lease(file, 60.0, 600.0)  # no beat within this test
        held._beat_s = 0.1 if name == "early" else 0.2  # for how long it looks for others
        held._me["host"] = name
        try:
            held.__enter__()
        except UserError as error:
            entered.append((name, str(error)))
            return
        finally:
            first_in.set()
        entered.append((name, None))

    threads = [threading.Thread(target=drive, args=(name,), daemon=True) for name in ("early", "late")]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return dict(entered)


def test_of_two_that_saw_no_holder_one_enters_however_late_the_other_writes(storage, monkeypatch):
    entered = _race(storage, monkeypatch)
    assert entered["early"] is None
    assert "in use by process" in entered["late"]
    assert "on early" in entered["late"]


def test_without_a_put_on_a_condition_both_enter_until_the_next_beat(storage, monkeypatch):
    """Known, of storages other than S3 and folders: both think that they hold it; the earlier loses it at a beat."""

    def cannot(file, data):
        raise NoConditionalPut("no")

    monkeypatch.setattr(lease, "create", cannot)
    assert _race(storage, monkeypatch) == {"early": None, "late": None}


def test_a_server_that_ignores_the_condition_is_found_out(store, tmp_path, monkeypatch):
    import obstore

    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, path, data, mode: put(store, path, data, mode="overwrite"))
    with pytest.raises(NoConditionalPut, match="ignores the condition"):
        create(store.storage() / tmp_path.name / "a", b"1")


def test_no_credentials_or_no_server_are_no_reason_to_wait_long(tmp_path):
    began = time.monotonic()
    with pytest.raises(NoConditionalPut) as refused:
        create(open_storage("s3://me:pass-word@bucket/x?endpoint_override=http://127.0.0.1:9") / "a", b"1")
    assert "word" not in str(refused.value)
    assert time.monotonic() - began < 30


def test_a_claim_without_a_heartbeat_is_waited_for(storage):
    """Its driver may be about to write one."""
    ours = {"token": "x", "pid": 1, "host": "elsewhere", "among": None, "beats": 0}
    create(storage / "lease.json-claims" / "000007.json", json.dumps(ours).encode())
    began = time.monotonic()
    with Lease(storage / "lease.json", 0.1, 0.6):
        assert time.monotonic() - began > 0.6
        assert sorted((storage / "lease.json-claims").files()) == ["000007.json", "000008.json"]
    assert (storage / "lease.json-claims").files() == {}


def test_a_later_claim_ends_an_earlier_one(storage):
    with Lease(storage / "lease.json", 0.1, 0.3) as held:
        later = {"token": "x", "pid": 12, "host": "elsewhere", "among": None, "beats": 0}
        create(storage / "lease.json-claims" / "000002.json", json.dumps(later).encode())
        assert _lost(held).startswith("was taken over by process 12 on elsewhere")
    assert "000002.json" in (storage / "lease.json-claims").files()  # not ours to remove


@pytest.mark.parametrize("hostile", [b"[" * 50_000, b'{"beats": 1e999}', b'{"a": 1, "a": 2}', b"\xff", b"1" * 5000])
def test_hostile_bytes_end_what_the_lease_guards(storage, hostile):
    with Lease(storage / "lease.json", 0.1, 0.3) as held:
        (storage / "lease.json").write_bytes(hostile)
        assert "cannot be known to be this command's alone any longer" in _lost(held)


def test_when_the_guard_dies_by_any_error_what_it_guards_ends(storage, monkeypatch):
    with Lease(storage / "lease.json", 0.1, 0.3) as held:
        monkeypatch.setattr(held, "_write", lambda: (_ for _ in ()).throw(RecursionError("too deep")))
        assert "RecursionError: too deep" in _lost(held)


def test_a_lease_is_held_by_one(storage):
    file = storage / "lease.json"
    with Lease(file, 0.1, 1.0):
        with pytest.raises(UserError, match=r"lease.json.*: in use by process \d+ on "), Lease(file, 0.1, 1.0):
            pass
        assert file.is_file()
    assert not file.is_file()
    file.write_bytes(b'{"token": "x", "pid": 1, "host": "elsewhere", "beats": 3}')  # its holder is silent
    with Lease(file, 0.1, 0.3) as held:
        assert b"elsewhere" not in file.read_bytes()
        time.sleep(0.3)
        assert held.lost is None
    file.write_bytes(b"half a")
    with pytest.raises(UserError, match=r"lease\.json: does not say which command holds"), Lease(file, 0.1, 0.3):
        pass


def test_only_a_process_that_this_one_could_see_is_known_to_be_dead(storage, monkeypatch):
    """In another container of this machine, under its name, a process of any number may be alive."""
    file = storage / "lease.json"
    with Lease(file, 0.1, 1.0):
        ours = json.loads(file.read_bytes())
    dead = {**ours, "token": "x", "pid": 2**22 + 1}
    file.write_bytes(json.dumps(dead).encode())
    began = time.monotonic()
    with Lease(file, 0.1, 60.0):
        assert time.monotonic() - began < 30  # at once
    monkeypatch.setattr("pipeline.storage.lease.os.readlink", lambda _: "pid:[1]")
    file.write_bytes(json.dumps(dead).encode())
    began = time.monotonic()
    with Lease(file, 0.1, 1.0):
        assert time.monotonic() - began > 1.0  # after its silence
