"""Fuzzed readers of what comes back from a place that others can write to: a storage, a shared folder, a tracker, a
cluster. See `fuzz_targets`."""

import fcntl
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.foreign_json import DamagedJson, parse_json
from pipeline.foreign_names import ForeignName, inside
from pipeline.layout import TrialFolder
from pipeline.records.attempts import last_attempt, noted_attempts
from pipeline.records.delivery import delivery_state, older_shipped
from pipeline.records.lock import folder_lock
from pipeline.records.pruned import prune_word, pruned_at
from pipeline.records.result import read_reason, read_result
from pipeline.records.spool import DamagedSpool, Spool, read_spool
from pipeline.records.sweep_record import read_record, sweep_id
from pipeline.remote.attempt import Changed
from pipeline.remote.attempt_record import parse_attempt
from pipeline.remote.index import Stored, parse_index, written
from pipeline.remote.recalled import parse_claim, parse_tracked
from pipeline.remote.sweep import take_in
from pipeline.remote.trial import RemoteTrial
from pipeline.reporting.artifacts import _drawn, _texts
from pipeline.reporting.columns import score_columns
from pipeline.reporting.data_used import data_words, parse_data
from pipeline.reporting.results import Results
from pipeline.running.claim import check_claim, claim
from pipeline.running.pins import read_pins
from pipeline.running.token import find_token
from pipeline.secrecy import mask, public
from pipeline.storage.lease import parse_holder
from pipeline.storage.opening import open_storage
from pipeline.submission.jobs import parse_job, parse_jobs
from pipeline.tracking.destination import Destination, recall, remember
from pipeline.tracking.prototypes import prototype_distribution
from pipeline.training.build import build_dynamics, build_model
from pipeline.training.checkpoint import load_newest, read_checkpoint, save_checkpoint
from pipeline.training.distributions import DistributionPieces, last_distributions, pieces_in
from pipeline.training.model_file import open_model, save_model
from tests.fuzz_target import Target
from tests.pipeline.samples import small_experiment
from tiny_onn.routing_health import routing_health

_WORDS = (
    b'[ ] { } , : " [[ {"a": null true false -1 1e999 NaN Infinity 1e-999 9223372036854775808 "\\ud800" "\\u0000" \xff'
)
_OTHER = (b"[" * 40, b'{"a":' * 40, b"1" * 5000, b"../", b"/etc/passwd", b"\\\\", b"\x1b[31m")
_JSON = (*_WORDS.split(), *_OTHER)
_HEX = "0123456789abcdef" * 2


def _refused(read: Callable[[bytes], object], *also: type[Exception]) -> Callable[[bytes], bool]:
    """Whether `read` takes bytes. Our own errors say why not, in text that can be written anywhere."""

    def run(data: bytes) -> bool:
        try:
            read(data)
        except (UserError, *also) as refusal:
            str(refusal).encode()
            return False
        return True

    return run


def _parsing(read: Callable[[bytes], object], *seeds: Any) -> Callable[[Path], Target]:
    raw = tuple(seed if isinstance(seed, bytes) else json.dumps(seed).encode() for seed in seeds)
    return lambda folder: Target(_refused(read), raw, _JSON)


def _file(name: str, read: Callable[[Path], object], *seeds: Any, also: tuple[type[Exception], ...] = ()) -> Any:
    """Of a reader of a file: `name` in a folder of its own, which `read` gets."""

    def make(folder: Path) -> Target:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)

        def run(data: bytes) -> None:
            place.write_bytes(data)
            read(folder)

        raw = tuple(seed if isinstance(seed, bytes) else json.dumps(seed).encode() for seed in seeds)
        return Target(_refused(run, *also), raw, _JSON)

    return make


def names(folder: Path) -> Target:
    """A foreign file name: what is taken lies in the folder."""

    def run(data: bytes) -> None:
        path = inside(folder, data.decode("utf-8", "surrogateescape"))
        assert path.resolve().is_relative_to(folder.resolve())
        assert path.name not in ("", ".", "..")

    seeds = (b"checkpoints/step-000001/state.safetensors", b"a", b"../../x", b"/x")
    return Target(_refused(run, ForeignName), seeds, (b"/", b"..", b".", b"\\", b"\0", b"~", b":", b"\xc3\xbc"))


def _index(data: bytes) -> None:
    index = parse_index(data, "here")
    assert parse_index(written(index), "again") == index


def pieces(folder: Path) -> Target:
    """The index and pieces of an attempt in a storage, through the driver's eyes: nothing is written elsewhere."""
    remote = RemoteTrial(open_storage(str(folder / "storage")), "key")
    part, good = remote.part(1), b'{"step": 1, "time_ms": 1, "metrics": {"a": 1.0}}\n'
    place, outside = TrialFolder(folder / "out" / "trial"), folder / "out"

    def stored(raw: bytes) -> Stored:
        return Stored(len(raw), hashlib.sha256(raw).hexdigest())

    def run(data: bytes) -> None:
        kind, raw = data[:1], data[1:]
        name = "metrics/000000000000000.jsonl" if kind == b"M" else "segments/000000.json"
        (part.files / name).write_bytes(raw)
        if kind == b"I":
            part.index_file.write_bytes(raw)
        else:
            part.put_index({name: stored(raw)})
        index = part.index()
        assert index is not None
        take_in(part, place, index, {})
        read_spool(place.spool)
        assert {path.name for path in outside.iterdir()} <= {"trial"}

    (part.files / "metrics/000000000000000.jsonl").write_bytes(good)
    named = written({"metrics/000000000000000.jsonl": stored(good)})
    return Target(_refused(run, Changed), (b"M" + good, b"I" + named, b"S" + named), (*_JSON, b"segments/000000.json"))


def spool(folder: Path) -> Target:
    """A spool: what is read of it is the same in one piece and in several."""
    path = folder / "metrics.jsonl"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            lines, _ = read_spool(path)
        except DamagedSpool as damage:
            lines = damage.before
        again, offset = [], 0
        try:
            while True:
                some, offset = read_spool(path, offset, 1)
                if not some:
                    break
                again += some
        except DamagedSpool:
            pass
        assert [line.step for line in again] == [line.step for line in lines]
        before = path.read_bytes()
        last = Spool(path).last_step
        assert last == max((line.step for line in lines), default=-1)
        assert before.startswith(path.read_bytes())
        read_spool(path)

    line = b'{"step": 1, "time_ms": 1700000000000, "metrics": {"train/task_loss": 1.5, "a": "NaN", "b": "-inf"}}\n'
    return Target(_refused(run), (line, line + line.replace(b"1,", b"2,"), b"\0" * 20 + b"\n"), (*_JSON, b"\n", line))


def checkpoint(folder: Path) -> Target:
    """A checkpoint: manifest and tensors; the tensors also with a manifest that agrees."""
    experiment = small_experiment()
    dynamics = build_dynamics(build_model(experiment), experiment.training)
    place = save_checkpoint(folder / "c", 1, dynamics, experiment.digest(), keep=1)
    good = {path.name: path.read_bytes() for path in place.iterdir()}

    def run(data: bytes) -> None:
        for name, raw in good.items():
            (place / name).write_bytes(raw)
        if data[:1] == b"M":
            (place / "manifest.json").write_bytes(data[1:])
        else:
            (place / "state.safetensors").write_bytes(data[1:])
            manifest = json.loads(good["manifest.json"])
            manifest.pop("manifest_sha256")
            manifest["sha256"] = {"state.safetensors": hashlib.sha256(data[1:]).hexdigest()}
            seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
            (place / "manifest.json").write_text(json.dumps({**manifest, "manifest_sha256": seal}))
        read_checkpoint(place)
        load_newest(folder / "c", dynamics, experiment.digest())

    seeds = (b"M" + good["manifest.json"], b"T" + good["state.safetensors"][:15_000])
    return Target(_refused(run), seeds, (*_JSON, b"F32", b"I64", b'"shape"', b"data_offsets", b"\xff" * 8))


def model(folder: Path) -> Target:
    """A model's card, and its tensors with a card that agrees."""
    experiment = small_experiment()
    save_model(folder / "m", build_model(experiment), experiment)
    card, weights = (folder / "m/model.json").read_bytes(), (folder / "m/weights.safetensors").read_bytes()

    def run(data: bytes) -> None:
        (folder / "m/model.json").write_bytes(card if data[:1] == b"W" else data[1:])
        (folder / "m/weights.safetensors").write_bytes(data[1:] if data[:1] == b"W" else weights)
        if data[:1] == b"W":
            agreeing = {**json.loads(card), "sha256": {"weights.safetensors": hashlib.sha256(data[1:]).hexdigest()}}
            (folder / "m/model.json").write_text(json.dumps(agreeing))
        open_model(folder / "m")

    return Target(_refused(run), (b"C" + card, b"W" + weights[:15_000]), (*_JSON, b"F32", b'"shape"', b"\xff" * 8))


def snapshot(folder: Path) -> Target:
    """A snapshot of prototypes, drawn."""
    path = folder / "step-000001.safetensors"
    tensors = {"L0.q/prototypes": np.ones((3, 2), np.float32), "L0.q/activation": np.ones(3, np.float32)}

    def run(data: bytes) -> None:
        path.write_bytes(data)
        prototype_distribution(path)

    good = safetensors.numpy.save(tensors)
    return Target(_refused(run), (good, safetensors.numpy.save({"x": np.ones(1)})), (*_JSON, b"F64", b"BF16", b"/good"))


def distributions(folder: Path) -> Target:
    """A piece of the distributions, read, and gone on from."""
    weights = torch.rand(6, 4)
    layers = {0: [routing_health(weights, weights, (weights,) * 3)]}
    DistributionPieces(folder / "d").add(5, layers)
    (piece,) = pieces_in(folder / "d")
    good = piece.read_bytes()

    def run(data: bytes) -> None:
        for each in pieces_in(folder / "d"):
            each.unlink()
        piece.write_bytes(data)
        DistributionPieces(folder / "d").add(7, layers)
        last_distributions(data.decode("utf-8", "replace"))

    return Target(_refused(run, ValueError), (good,), _JSON)


def _destination(folder: Path) -> None:
    recall(folder / "sweeps" / "x", None, None)


def _records(folder: Path) -> None:
    read_record(folder)
    sweep_id(folder)
    read_json(folder / "sweep.json")


def _tracked(folder: Path) -> Target:
    places = [TrialFolder(folder / "trials" / "a")]

    def run(data: bytes) -> None:
        for path in parse_tracked(data, "here", folder, places):
            assert path.is_relative_to(folder)

    run_key = json.dumps({"creation_key": _HEX})
    shipped = json.dumps({"run_id": _HEX, "offset": 12, "figures": ["step-000001.safetensors"], "ended": None})
    whole = json.dumps({"creation_key": _HEX, **json.loads(shipped)})
    good = {"mlflow_summary.json": run_key, "trials/a/mlflow_run.json": whole, "trials/a/shipped.json": shipped}
    return Target(_refused(run), (json.dumps(good).encode(), b"{}"), _JSON)


def _memories(data: bytes) -> None:
    for shape in (delivery_state, older_shipped, prune_word):
        try:
            shape(parse_json(data[1:], "here"))
        except ValueError:
            continue
        return
    raise DamagedJson("of no shape")


def _attempts(folder: Path) -> None:
    place = TrialFolder(folder)
    (place.ray / "attempt.json").write_bytes(place.attempts.read_bytes())
    last_attempt(place)
    assert all(isinstance(each, dict) for each in noted_attempts(place))


def attempts(folder: Path) -> Target:
    """What is noted of a trial's attempts."""
    TrialFolder(folder).ray.mkdir(parents=True)
    made = _file("attempts.jsonl", _attempts, {"attempt": 1, "session": "x"}, b'{"attempt": 1}\n{"attempt"')
    target: Target = made(folder)
    return target


def destination(folder: Path) -> Target:
    """Where a sweep's runs go."""
    place = folder / "sweeps" / "x"
    place.mkdir(parents=True)
    remember(place, Destination("http://h:5000", "e"), {"a": "b"})
    good = (place / "tracking.json").read_bytes()
    target: Target = _file("sweeps/x/tracking.json", _destination, good, b"{}")(folder)
    return target


def _drawn_grids(data: bytes) -> None:
    for drawn in _drawn(data.decode("utf-8", "replace")):
        assert drawn.task_id.isprintable()


def _generated(data: bytes) -> None:
    for text in _texts(data.decode("utf-8", "replace")):
        assert text.task_id.isprintable()
        assert all(line.isprintable() for line in text.predicted.split("\n"))


def _scores(data: bytes) -> None:
    results = Results("x", [], {}, 0, [], data=(("text", data.decode("utf-8", "replace")),))
    for column in score_columns(results):
        column.show(0.5)
        column.heading.encode()


def _jobs(data: bytes) -> None:
    value = parse_json(data, "here")
    (parse_jobs if isinstance(value, list) else parse_job)(value, "http://h")


def _token(folder: Path) -> None:
    token = find_token({"RAY_AUTH_TOKEN_PATH": str(folder / "token")})
    assert token is not None
    assert token.secret.isprintable()
    assert len(token.secret) < 16 or token.secret not in repr(token)  # a short one is part of any text


def address(folder: Path) -> Target:
    """Addresses: masking is stable, and leaves no password."""

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        masked = mask(text, text)
        assert len(mask(masked)) < 10 * len(text) + 100
        public(text)
        known = "http://me:hidden@h/x?client_secret=hidden&" + text.replace("hidden", "")
        assert "hidden" not in mask(known, known)
        with suppress(UserError):
            open_storage(f"s3://bucket/{text}")

    words = (b"://", b"@", b":", b"/", b"?", b"&", b"#", b"=", b"***", b";PWD=", b"%40", b"password", b"region=", b"{")
    return Target(_refused(run), (b"http://u:p@h/x?a=b", b"s3://k:s@b?region=eu", b"a;PWD={x;y}"), words)


def trial_config(folder: Path) -> Target:
    """A trial's settings, by which a folder without a record is known."""
    experiment = small_experiment()
    place = TrialFolder(folder / "trials" / f"{experiment.training.arm}-s{experiment.training.seed}")
    place.root.mkdir(parents=True)
    good = experiment.model_dump_json().encode()

    def run(data: bytes) -> None:
        place.config.write_bytes(data)
        assert check_claim(folder, experiment, "hash") is not None

    return Target(_refused(run), (good, b"{}", b"[1]"), _JSON)


def code(folder: Path) -> Target:
    """A sweep's record, with the user's own code: what has changed since is said, or the record is refused."""
    experiment = small_experiment()
    claim(folder, experiment, "hash", False, "tiny-onn")
    record = json.loads((folder / "sweep.json").read_text())
    seeds = [
        {**record, "user_code": files}
        for files in ({}, {"a.py": {"sha256": _HEX * 2, "text": "x\n"}}, {"a.py": None}, {"a.py": 1, "b.py": {}})
    ]

    def run(data: bytes) -> None:
        (folder / "sweep.json").write_bytes(data)
        assert not claim(folder, experiment, "hash", True, "tiny-onn")

    return Target(_refused(run), tuple(json.dumps(seed).encode() for seed in seeds), _JSON)


def lock(folder: Path) -> Target:
    """The lock of a folder that a live process holds, whatever is in it: refused, naming who holds it."""
    path = folder / "lock"
    held = path.open("w+b")
    fcntl.flock(held, fcntl.LOCK_EX)

    def run(data: bytes) -> bool:
        held.seek(0)
        held.truncate()
        held.write(data)
        held.flush()
        try:
            with folder_lock(folder):
                raise AssertionError("a lock that is held was taken")
        except UserError as refusal:
            str(refusal).encode()
        assert path.read_bytes() == data
        return data == good

    good = json.dumps({"pid": 12, "host": "h"}).encode()
    return Target(run, (good, b"[]", b'{"pid": [1]}'), _JSON)


def _results(folder: Path) -> None:
    result = read_result(TrialFolder(folder))
    assert all(isinstance(each, str) for pair in result.environment.items() for each in pair)
    assert all(isinstance(each, str) for each in result.checkpoint_problems)
    read_reason(folder / "result.json").encode()
    if not result.environment:
        raise DamagedJson("no result")


def profile(folder: Path) -> Target:
    """What a run's data set says of itself in the tracker."""

    def run(data: bytes) -> None:
        raw = data.decode("utf-8", "replace")
        fields = parse_data("data", raw)
        words = data_words(Results("x", [], {}, 0, [], data=(("data", raw),)))
        "".join(words).encode()
        if len(fields) < 2:
            raise DamagedJson("no profile")

    told = {"train": {"tasks": 3, "too_long_tasks": 1}, "held_out": {"tasks": 2}, "source": "f"}
    return Target(_refused(run), (json.dumps({**told, "leaks": {"number": 1, "first": ["a"]}}).encode(),), _JSON)


_JOB = {"submission_id": "x-1", "metadata": {"tiny_onn_name": "x"}, "status": "RUNNING", "message": "m",
        "driver_exit_code": None, "start_time": 1, "end_time": None}  # fmt: skip
_HOLDER = {"token": "x", "pid": 1, "host": "h", "among": None, "beats": 3}
_EXAMPLE = {"task_id": "a", "pair": 0, "given": "one", "predicted": "two", "target": "three"}
_SCORE = {"name": "a", "title": "an a", "unit": "%", "best": "lowest", "scale": 100, "digits": 2}
_PREDICTION = {"task_id": "a", "pair": 0, "input": [[1]], "target": [[2]], "prediction": [[2]], "exact": True}

STORED: dict[str, Callable[[Path], Target]] = {
    "json": _parsing(lambda data: parse_json(data, "here"), {"a": [1, 2.5, None, "x"]}, [], b"[" * 60 + b"]" * 60),
    "names": names,
    "index": _parsing(_index, {"metrics/000000000000000.jsonl": [3, "0" * 64], "result.json": [1, "a" * 64]}, {}),
    "attempt": _parsing(
        lambda data: parse_attempt(data, "here", "key"), {"attempt": 3, "session": "x", "failure": None}
    ),
    "lease": _parsing(lambda data: parse_holder(data, "here"), _HOLDER),
    "claim": _parsing(lambda data: parse_claim(data.decode("utf-8", "replace"), "here"), {"experiment": {"name": "x"}}),
    "tracked": _tracked,
    "destination": destination,
    "record": _file("sweep.json", _records, {"experiment": {}, "id": "x"}),
    "spool": spool,
    "pieces": pieces,
    "memories": _parsing(_memories, b" " + json.dumps({"creation_key": _HEX}).encode(), b' {"step": 3}'),
    "attempts": attempts,
    "pruned": _file("pruned.json", lambda folder: pruned_at(TrialFolder(folder)), {"step": 3}),
    "checkpoint": checkpoint,
    "model": model,
    "snapshot": snapshot,
    "distributions": distributions,
    "predictions": _parsing(_drawn_grids, [_PREDICTION], []),
    "examples": _parsing(_generated, [_EXAMPLE], []),
    "scores": _parsing(_scores, {"scores": [_SCORE]}, {}),
    "jobs": lambda folder: Target(_refused(_jobs), (json.dumps([_JOB]).encode(), json.dumps(_JOB).encode()), _JSON),
    "token": _file("token", _token, b"0123abcd\n", b"", b"a\nb"),
    "pins": _file(
        "constraints.txt", lambda folder: read_pins(folder / "constraints.txt"), b"torch==2.13.0\nray==2 # x\n"
    ),
    "address": address,
    "result": _file("result.json", _results, {"environment": {"torch": "2"}, "checkpoint_problems": ["x"]}),
    "trial_config": trial_config,
    "code": code,
    "lock": lock,
    "profile": profile,
}
