"""A storage by itself: on an S3-compatible server on loopback, and on a folder that machines share."""

import hashlib
import itertools
import json
import resource
import threading
import time

import pytest
import torch

from pipeline.data.loader import Loader
from pipeline.data.published import publish
from pipeline.data.shards import open_prepared, prepare, read_rows
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig
from pipeline.storage.opening import check_storage, located, open_storage
from pipeline.storage.storage import StorageError, location, patiently
from tests.pipeline.arc_samples import random_task, write_tasks
from tests.pipeline.object_store import object_store
from tests.pipeline.samples import small_data


@pytest.fixture(scope="module")
def store():
    with object_store() as running:
        running.storage()
        yield running


@pytest.fixture(params=["s3", "folder"])
def storage(request, tmp_path):
    if request.param == "folder":
        return open_storage(str(tmp_path / "shared")) / "test"
    return request.getfixturevalue("store").storage() / tmp_path.name


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data"))


def test_what_is_put_is_found_by_another_process(storage, tmp_path):
    check_storage(storage)
    assert storage.files() == {}
    (storage / "deep" / "a ü.txt").write_bytes(b"one")
    assert located(location(storage / "deep" / "a ü.txt")).read_text() == "one"
    (storage / "deep" / "a ü.txt").write_bytes(b"other")
    assert (storage / "deep" / "a ü.txt").read_bytes() == b"other"
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 2**15)  # more than a request takes
    stored = (storage / "large").upload(large)
    assert stored == (2**23, hashlib.sha256(large.read_bytes()).hexdigest())
    assert (storage / "large").download(tmp_path / "back", 2**23) == stored
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert (storage / "large").sha256() == stored[1]
    assert {name: version.size for name, version in storage.files().items()} == {"large": 2**23}
    (storage / "large").remove()
    (storage / "large").remove()
    assert not (storage / "large").is_file()
    with pytest.raises(FileNotFoundError):
        (storage / "large").read_bytes()
    with pytest.raises(FileNotFoundError):
        (storage / "large").download(tmp_path / "back", 2**23)
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://bucket/x?region=eu&endpoint_overide=h", "did you mean 'endpoint_override'"),
        ("s3://", "it has no bucket"),
        ("", "--storage: is empty"),
        ("ftp://host/x", "ftp"),
        ("file:///proc/nowhere", "/proc/nowhere"),
    ],
)
def test_a_place_that_cannot_be_is_refused(uri, reason):
    with pytest.raises(UserError, match=reason):
        check_storage(open_storage(uri))


def test_a_wrong_bucket_wrong_credentials_and_no_server_are_refused_within_seconds_without_secrets(store):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"--storage s3://absent/.*NO_SUCH_BUCKET"):
        check_storage(open_storage(store.uri("absent")))
    no_server = "s3://me:pass%2Fword@bucket/x?endpoint_override=http://127.0.0.1:9"
    with pytest.raises(UserError, match=r"s3://me:\*\*\*@bucket/x.*connect") as refused:
        check_storage(open_storage(no_server))
    assert "word" not in str(refused.value)
    assert "word" not in f"{open_storage(no_server)!r} {open_storage(no_server) / 'a'}"
    store.look_at_credentials(True)
    try:
        with pytest.raises(UserError, match="INVALID_ACCESS_KEY_ID"):
            check_storage(open_storage(store.uri()))
    finally:
        store.look_at_credentials(False)
    assert time.monotonic() - start < 120  # without a limit of its own a client tries for many minutes
    check_storage(open_storage(store.uri()))


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole():
    with object_store() as store:
        file = store.storage() / "now.json"
        file.write_bytes(b'""')
        done = threading.Event()

        def replace():
            for size in itertools.takewhile(lambda _: not done.wait(0.002), itertools.count()):
                file.write_bytes(json.dumps("x" * size).encode())

        writer = threading.Thread(target=replace)
        writer.start()
        try:
            versions = [json.loads(file.read_bytes()) for _ in range(100)]  # else about a third of them is cut short
        finally:
            done.set()
            writer.join()
    assert len(set(versions)) > 10


def test_a_storage_that_is_away_for_a_moment_is_waited_for():
    with object_store() as store:
        storage = store.storage()
        (storage / "a").write_bytes(b"1")
        store.stop()
        with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
            (storage / "a").read_bytes()
        with pytest.raises(StorageError, match=r"storage unreachable for \d+ s: s3://bucket"):
            patiently((storage / "a").read_bytes, limit_s=0.4)
        calls = []

        def call():
            calls.append(1)
            if len(calls) == 2:
                store.start()
            return (storage / "a").read_bytes()

        assert patiently(call) == b"1"


def test_published_data_trains_as_the_files_here_do(storage, prepared):
    there = publish(prepared, storage)
    assert there.manifest == prepared.manifest
    seen = open_prepared(located(location(there.folder)), "arc", hashes=False)
    assert [s.task_id for s in read_rows(seen, "held_out")] == [s.task_id for s in read_rows(prepared, "held_out")]
    for rank in range(2):
        here, away = (Loader(each, "train", 512, 0, rank, 2) for each in (prepared, seen))
        for one, other in zip(here.batches(1), away.batches(1), strict=True):
            assert one.task_ids == other.task_ids
            assert torch.equal(one.tokens, other.tokens)
    shard = there.path(there.manifest.shards[0])
    whole = shard.read_bytes()
    put_at = storage.filesystem.get_file_info(shard.path).mtime_ns
    assert publish(prepared, storage) == there
    assert storage.filesystem.get_file_info(shard.path).mtime_ns == put_at
    shard.write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
    with pytest.raises(UserError, match=r"train-00000\.parquet: is damaged: sha256"):
        publish(prepared, storage)
    with pytest.raises(UserError, match=r"train-00000\.parquet, row group"):
        read_rows(seen, "train")


def test_a_rank_reads_its_own_row_groups_and_no_others(store, tmp_path):
    tasks = write_tasks(tmp_path / "tasks", [random_task(f"t{i:02d}", i, side=12) for i in range(40)])
    config = DataConfig(dataset="folder", folder=str(tasks), max_tokens=2000, rows_per_group=4)
    prepared = publish(prepare(config, tmp_path / "data"), store.storage() / tmp_path.name)
    shards = {prepared.path(shard).path for shard in prepared.shards("train")}
    size = sum(prepared.folder.files()[path.rpartition("/")[2]].size for path in shards)
    read = store.bytes_sent(shards)
    loaders = [Loader(prepared, "train", 16000, 0, rank, 4) for rank in range(4)]
    assert store.bytes_sent(shards) == read  # lengths lie in a file of their own
    parts = []
    for loader in loaders:
        before = store.bytes_sent(shards)
        list(loader.batches(0))
        parts.append(store.bytes_sent(shards) - before)
    footer = 2**16  # what Arrow reads of a file's end, once
    assert max(parts) < 0.3 * size + footer, (parts, size)
    assert size > 2 * footer


def test_an_outage_while_batches_are_read_is_waited_for(prepared, monkeypatch):
    with object_store() as store:
        there = publish(prepared, store.storage())
        loader = Loader(there, "train", 512, 0)
        expected = list(Loader(prepared, "train", 512, 0).batches(0))
        store.stop()
        monkeypatch.setattr(time, "sleep", lambda _: store.start() if not store.runs else None)
        taken = list(loader.batches(0))
    assert [batch.task_ids for batch in taken] == [batch.task_ids for batch in expected]


def test_what_a_folder_has_no_room_for_leaves_nothing_behind(tmp_path):
    """Else each try, of which there are many, would take a part of what room somebody makes."""
    storage, (source, large) = open_storage(str(tmp_path / "shared")), (tmp_path / "large", b"x" * 2**20)
    source.write_bytes(large)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for put in (lambda: (storage / "a").write_bytes(large), lambda: (storage / "a").upload(source)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        try:
            with pytest.raises(StorageError):
                put()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list((tmp_path / "shared").iterdir()) == []
