"""Whoever can write to the storage can write an index: nothing of it leads out of a trial's folder, or is unbounded."""

import hashlib
import json

import pytest

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.spool import Spool, read_spool
from pipeline.remote import index as names
from pipeline.remote import pusher
from pipeline.remote.attempt import Changed, RemoteAttempt
from pipeline.remote.index import Stored, is_allowed, metrics_in, parse_index, segments_in, to_seal, written
from pipeline.remote.pusher import files_to_put, push_once
from pipeline.remote.sweep import take_in
from pipeline.remote.worker import restore
from pipeline.storage.storage import Storage
from pipeline.training.checkpoint import load_newest
from tests.pipeline.remote.training import taken_in, without_speed

ESCAPES = (
    "/tmp/planted",
    "../planted",
    "checkpoints/../../planted",
    "checkpoints/step-000001/../../../planted",
    "prototypes\\..\\..\\planted",
    "model/../../../planted",
    "./result.json",
    "mlflow_run.json",
    "shipped.json",
    "ray/attempt.json",
    "metrics.jsonl",
    ".ssh/authorized_keys",
    "checkpoints/step-000001/damage.txt",
    "result.json\n",
)


def of(data: bytes) -> Stored:
    return Stored(len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_name_that_no_attempt_writes_is_refused_by_driver_and_worker(remote, tmp_path, monkeypatch, name, sealed):
    home = tmp_path / "home"
    (home / "out").mkdir(parents=True)
    remote.put_attempt(1, "now")
    part, raw = remote.part(1), json.dumps({name: [1, "0" * 64]}).encode()
    if sealed:
        (part.files / "segments/000000.json").write_bytes(raw)
        raw = written({"segments/000000.json": of(raw)})
    part.index_file.write_bytes(raw)
    asked = []
    monkeypatch.setattr(Storage, "download", lambda self, *arguments: asked.append(str(self)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="is not the index of a trial"):
        taken_in(remote, TrialFolder(home / "out" / "driver"))
    with pytest.raises(UserError, match="is not the index of a trial"):
        restore(remote, TrialFolder(home / "out" / "worker"), "digest", everything=True)
    assert asked == []
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [home / "out" / "worker"]


@pytest.mark.parametrize(
    "value",
    [
        {"result.json": [-1, "0" * 64]},
        {"result.json": [2**40, "0" * 64]},
        {"result.json": [True, "0" * 64]},
        {"result.json": [1.0, "0" * 64]},
        {"result.json": [1, "0" * 63]},
        {"result.json": [1, "../" * 21 + "0"]},
        {"result.json": [1]},
        {"result.json": {"size": 1}},
        {f"metrics/{i:015d}.jsonl": [1, "0" * 64] for i in range(names.MOST_FILES + 1)},
        ["result.json"],
    ],
)
def test_sizes_hashes_and_counts_are_bounded(value):
    with pytest.raises(UserError, match="here: is not the index of a trial"):
        parse_index(json.dumps(value).encode(), "here")


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b'{"result.json": [1e999, "0"]}', b"{" + b" " * names.MOST_INDEX_BYTES]
)
def test_hostile_json_is_refused_in_our_own_words(raw):
    with pytest.raises(UserError, match="here: is not the index of a trial"):
        parse_index(raw, "here")


def test_a_link_in_the_trials_folder_is_not_written_through(remote, tmp_path):
    remote.put_attempt(1, "now")
    (remote.part(1).files / "result.json").write_bytes(b"{}")
    (remote.part(1).files / "prototypes/step-000001.safetensors").write_bytes(b"{}")
    victim, folder = tmp_path / "victim", TrialFolder(tmp_path / "trial")
    victim.mkdir()
    (victim / "result.json").write_text("mine")
    folder.root.mkdir()
    for name, link in (("result.json", victim / "result.json"), ("prototypes/step-000001.safetensors", victim)):
        remote.part(1).put_index({name: of(b"{}")})
        place = folder.root / name.split("/")[0]
        place.symlink_to(link)
        with pytest.raises(UserError, match="is a link, which is not followed"):
            taken_in(remote, folder)
        place.unlink()
    assert [(path.name, path.read_text()) for path in victim.iterdir()] == [("result.json", "mine")]


def test_a_file_longer_than_the_index_says_is_not_read_to_its_end(remote, tmp_path):
    remote.put_attempt(1, "now")
    part = remote.part(1)
    (part.files / "result.json").write_bytes(b"x" * 1000)
    part.put_index({"result.json": of(b"x" * 10)})
    with pytest.raises(Changed, match="more than the expected 10 bytes"):
        taken_in(remote, TrialFolder(tmp_path / "trial"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_attempts_number_costs_no_request_each(remote, monkeypatch):
    remote.put_attempt(9_000, "now")
    remote.part(3).put_index({"result.json": of(b"{}")})
    asked = []
    monkeypatch.setattr(RemoteAttempt, "index", counted(RemoteAttempt.index, asked))
    part, index = remote.newest(remote.attempt())
    assert (part.number, list(index)) == (3, ["result.json"])
    assert len(asked) == 2
    for number in (10**4, 10**30, -1, 0, True, "3", 1e999):
        said = json.dumps({"attempt": number, "session": "x", "failure": None}).encode()
        for file in (remote.attempt_file(9_000), remote.attempt_file(0)):
            file.write_bytes(said)
        with pytest.raises(UserError, match=r"~attempt-9000\.json: is not the record of an attempt"):
            remote.attempt()
        with pytest.raises(UserError, match=r"~attempt\.json: is not the record of an attempt"):
            remote.attempt(0)


def test_remove_earlier_removes_what_there_is_and_asks_for_nothing_else(remote, monkeypatch):
    for number in (2, 7_000):
        remote.part(number).put_index({})
        (remote.part(number).files / "result.json").write_bytes(b"{}")
    (remote.part(4).files / "result.json").write_bytes(b"{}")  # an attempt that never put its index
    (remote.part(9_001).files / "result.json").write_bytes(b"{}")
    removed = []
    monkeypatch.setattr(Storage, "remove_folder", counted(Storage.remove_folder, removed))
    remote.part(9_000).remove_earlier()
    assert len(removed) == 3
    assert remote.files.folders() == ["9001"]
    assert remote.indexed(9_000) == set()


def counted(method, calls):
    def call(self, *arguments):
        calls.append(self)
        return method(self, *arguments)

    return call


def test_every_file_that_training_leaves_may_be_put_and_is(whole):
    put = {path.relative_to(whole.root).as_posix() for path in files_to_put(whole)}
    there = {path.relative_to(whole.root).as_posix() for path in whole.root.rglob("*") if path.is_file()}
    assert there - put == {"metrics.jsonl"}  # which goes in pieces
    assert all(map(is_allowed, put))
    assert {name.split("/")[0] for name in put} >= {"model", "prototypes", "checkpoints", "result.json"}


def test_what_changes_no_more_is_sealed_and_comes_back_whole(remote, tmp_path, monkeypatch):
    """The index stays small, and driver and worker end with the same bytes, whenever they looked."""
    monkeypatch.setattr(pusher, "PIECE_BYTES", 100)
    monkeypatch.setattr(names, "SEALED_TOGETHER", 5)
    folder, index, put, part = TrialFolder(tmp_path / "worker"), {}, {}, remote.part(1)
    often, seldom = TrialFolder(tmp_path / "often"), TrialFolder(tmp_path / "seldom")
    have_often, have_seldom = {}, {}
    remote.put_attempt(1, "now")
    spool = Spool(folder.spool)
    sizes = []
    for step in range(1, 80):
        spool.write(step, {"a": step / 3})
        push_once(part, folder, index, put)
        sizes.append(len(part.index()))
        have_often = taken_in(remote, often, have_often)
        if step % 33 == 0:
            have_seldom = taken_in(remote, seldom, have_seldom)
    have_seldom = taken_in(remote, seldom, have_seldom)
    whole = folder.spool.read_bytes()
    assert often.spool.read_bytes() == seldom.spool.read_bytes() == whole
    assert len(segments_in(index)) == 3  # of the 7 that the metrics fill, five lie in one that is above them
    assert max(sizes) <= 5 + 5 + 1
    assert len(metrics_in(remote.index())) == 40
    late = TrialFolder(tmp_path / "late")
    restore(remote, late, "digest", everything=True)
    assert late.spool.read_bytes() == whole
    again, index = remote.part(2), {}  # another attempt goes on from there
    remote.put_attempt(2, "later")
    push_once(again, late, index, {})
    Spool(late.spool).write(80, {"a": 1.0})
    push_once(again, late, index, {})
    taken_in(remote, often, have_often)
    assert [line.step for line in read_spool(often.spool)[0]] == list(range(1, 81))
    name = segments_in(index)[0]
    whole_segment = (again.files / name).read_bytes()
    (again.files / name).write_bytes(whole_segment[:-1] + b" ")
    with pytest.raises(Changed, match="is not what the index says"):
        taken_in(remote, TrialFolder(tmp_path / "damaged"))


def test_the_last_pieces_are_never_sealed():
    index = {f"metrics/{i:015d}.jsonl": of(b"") for i in range(names.SEALED_TOGETHER)}
    assert to_seal(index) == []
    index |= {f"metrics/{names.SEALED_TOGETHER:015d}.jsonl": of(b""), "distributions/step-000001.json": of(b"")}
    assert to_seal(index) == list(index)[:-2]


def test_a_checkpoint_that_is_not_what_the_index_says_is_not_gone_on_from(remote, whole, data, tmp_path):
    """Its own manifest may be in order: then somebody put another checkpoint there."""
    from pipeline.training.build import build_dynamics, build_model
    from tests.pipeline.samples import small_experiment

    part, index, experiment = remote.part(1), {}, small_experiment()
    remote.put_attempt(1, "now")
    push_once(part, whole, index, {})
    other = sorted(whole.checkpoints.iterdir())[0]
    newest = sorted(whole.checkpoints.iterdir())[-1]
    for name in ("state.safetensors", "manifest.json"):
        raw = (other / name).read_bytes()
        (part.files / f"checkpoints/{newest.name}/{name}").write_bytes(raw)
    place = TrialFolder(tmp_path / "worker")
    restore(remote, place, experiment.digest(), everything=True)
    dynamics = build_dynamics(build_model(experiment), experiment.training)
    step, problems = load_newest(place.checkpoints, dynamics, experiment.digest())
    assert step < int(newest.name.removeprefix("step-"))
    assert "the index says" in problems[0]
    driver = TrialFolder(tmp_path / "driver")
    take_in(part, driver, index, {})
    assert without_speed(driver) == without_speed(whole)


@pytest.mark.parametrize("inner", ["segments/000001.json", "segments/000002.json", "metrics/000000000000000.jsonl"])
def test_segments_go_round_in_no_circle_and_name_nothing_twice(remote, tmp_path, inner):
    remote.put_attempt(1, "now")
    part = remote.part(1)
    raw = json.dumps({inner: [1, "0" * 64]}).encode()
    (part.files / "segments/000001.json").write_bytes(raw)
    part.put_index({"segments/000001.json": of(raw), "metrics/000000000000000.jsonl": of(b"")})
    with pytest.raises(UserError, match="is not the index of a trial"):
        restore(remote, TrialFolder(tmp_path / "x"), "digest", everything=True)
