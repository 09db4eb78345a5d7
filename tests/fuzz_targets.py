"""What is fuzzed: for each reader of foreign bytes, a function of bytes that fails only where there is a fault of ours.

A target takes any bytes. Our own errors, which say what is wrong, are caught; whatever else is raised is a finding, and
so is an input that is taken and does not come out again as it went in.
"""

import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.data.given import task_given
from pipeline.data.manifest import Manifest, Shard, data_hash, file_hash
from pipeline.data.parquet_pages import footer_of, read_of
from pipeline.data.published import lengths_of, publish
from pipeline.data.related import marks
from pipeline.data.rows import read_by_arrow
from pipeline.data.shards import open_prepared, prepare, read_rows
from pipeline.data.sources.folder import read_tasks
from pipeline.data.task import Pair, grid_of
from pipeline.data.text import passages, read_texts, related_passages
from pipeline.data.tokens import (
    COORDINATE_RANGE,
    VOCABULARY_SIZE,
    NotDecodable,
    decode_grid,
    decode_sequence,
    encode_pairs,
    encode_task,
    prompt_length,
)
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig
from pipeline.settings.experiment_file import read_experiment, validate_experiment
from pipeline.settings.trials import trials_of
from pipeline.settings.yaml_file import read_yaml
from pipeline.storage.opening import open_storage
from tests.fuzz_stored import STORED
from tests.fuzz_target import Target
from tests.pipeline.arc_samples import as_json, parquet_of, random_task, write_tasks, zipped

ROOT = Path(__file__).parents[1]


def arc(folder: Path) -> Target:
    """The readers of tasks: a file's bytes, in whichever format."""
    file = folder / "task.json"

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        tasks = read_tasks(file, pairs_per_task=2)
        "".join((*tasks.refused, *tasks.notes)).encode()
        for task in (*tasks.train, *tasks.evaluation):
            task.task_id.encode()
            again = decode_sequence(encode_task(task).tokens)
            assert len(again) == len(task.pairs)
            for (given, answer), pair in zip(again, task.pairs, strict=True):
                assert np.array_equal(given, pair.input)
                assert answer is not None
                assert pair.output is not None
                assert np.array_equal(answer, pair.output)
            assert marks(task)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        with suppress(UserError):
            assert task_given(value).test[0].output is None
        predicted = read_tasks(file, for_prediction=True)
        assert all(pair.output is None for task in predicted.train for pair in task.test)
        return bool(tasks.train) and not tasks.refused

    tasks = [as_json(random_task("t", i, side=2 + i)) for i in range(3)]
    first, many = json.dumps(tasks[0]), {"a": tasks[0], "b": tasks[1]}
    lines = "\n".join(json.dumps({"id": str(i), **task}) for i, task in enumerate(tasks))
    others = [*tasks[1:], many, {"train": many, "eval": {"c": tasks[2]}}, tasks, [p for t in tasks for p in t["train"]]]
    texts = [first, *map(json.dumps, others), lines, "\ufeff" + first, "[" * 60 + "]" * 60]
    seeds = [text.encode() for text in texts]
    seeds += [gzip.compress(seeds[0]), zipped({"training/a.json": seeds[0], "b/c.jsonl": lines.encode()})]
    seeds += [parquet_of(tasks), parquet_of([pair for task in tasks for pair in task["train"]])]
    words = b'[ ] { } , : [[ ]] [] "train" "test" "input" "output" null true -1 10 1.5 1e999 NaN "\\ud800" \xff'.split()
    more = [b"eval", b"attempt_1", b"\n", b"PK\x03\x04", b"PK\x01\x02", b"PAR1", b"\x1f\x8b", b"../", b"\xef\xbb\xbf"]
    return Target(run, tuple(seeds), (*words, *more))


def tokens(folder: Path) -> Target:
    """The tokeniser: any token ids, -128..127, one a byte."""

    def run(data: bytes) -> bool:
        ids = np.frombuffer(data, dtype=np.int8).tolist()
        with suppress(NotDecodable):
            assert np.array_equal(grid_of(decode_grid(ids)), decode_grid(ids))
        with suppress(NotDecodable):
            assert 0 < prompt_length(np.array(ids)) <= len(ids)
        try:
            grids = decode_sequence(ids)
        except NotDecodable:
            return False
        if grids:
            pairs = [Pair(grid_of(i), None if o is None else grid_of(o)) for i, o in grids]
            assert encode_pairs(pairs, [True] * len(pairs)).tokens.tolist() == ids
        return True

    seeds = tuple(encode_task(random_task("t", i, side=1 + i)).tokens.tobytes() for i in range(3))
    prompt = bytes([11, 12, 1, 14, 13])
    return Target(run, (*seeds, prompt, b""), tuple(bytes([token]) for token in range(VOCABULARY_SIZE)))


def yaml(folder: Path) -> Target:
    """The YAML reader: a file's bytes."""
    file = folder / "x.yaml"

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        try:
            value = read_yaml(file)
        except UserError as refusal:
            str(refusal).encode()
            return False
        assert isinstance(value, dict)
        text = json.dumps(value)
        text.encode()
        assert json.dumps(json.loads(text)) == text
        return True

    words = b'a: - [ ] { } , # & * ! !! | > " % @ ` --- ... << ? ~ null true 0x1 1e5 .inf "\\ud800" \xc2\x85'.split()
    return Target(run, (*_configs(), b"a: 1\nb: [1e-3, no, '', null]\nc: {d: |\n  text\n}\n"), (*words, b"\n  ", b"\t"))


def config(folder: Path) -> Target:
    """The config loader: a file's bytes, as far as the trials of its sweep."""
    file = folder / "x.yaml"

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        try:
            experiment = read_experiment(file)
        except UserError as refusal:
            str(refusal).encode()
            return False
        again = validate_experiment(json.loads(experiment.model_dump_json()), "again")
        assert again.digest() == experiment.digest()
        if experiment.sweep is not None:
            trials = trials_of(experiment)
            assert len({trial.key for trial in trials}) == len(trials)
        return True

    settings = b"sweep: seeds: arms: grid: name: data: model: training: training.steps model.layers".split()
    values = b"[] {} null true 0 -1 1.0 1e400 1e-9 99999999999999999999 ../x per_token none a:b '' \xc3\xa9".split()
    return Target(run, _configs(), (*settings, *values, b"\n  ", b"\n"))


def shards(folder: Path) -> Target:
    """A prepared data set: S and a shard's bytes, which the manifest agrees to; or M and a manifest's."""
    source = write_tasks(folder / "tasks", [random_task(f"t{i}", i) for i in range(6)])
    settings = DataConfig(dataset="folder", folder=str(source), max_tokens=400, dihedral_views=1, rows_per_group=2)
    prepared = prepare(settings, folder / "data")
    path = prepared.folder / "manifest.json"
    manifest = path.read_bytes()
    shard = prepared.path(prepared.manifest.shards[0])
    whole = shard.read_bytes()

    def run(data: bytes) -> bool:
        shard.write_bytes(whole if data[:1] == b"M" else data[1:])
        path.write_bytes(data[1:] if data[:1] == b"M" else _agreeing(manifest, shard))
        try:
            for sequence in read_rows(open_prepared(prepared.folder, "arc"), "train"):
                assert len(sequence) > 0
                assert sequence.tokens.max() < VOCABULARY_SIZE
                assert max(axis.max() for axis in sequence.coordinates) < COORDINATE_RANGE
        except UserError as refusal:
            str(refusal).encode()
            return False
        return True

    words = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"PAR1", b'"', b"{", b"[", b"-1", b"null", b'"schema_version"')
    return Target(run, (b"S" + whole, b"M" + manifest), words)


def solutions(folder: Path) -> Target:
    """Kaggle's two files, C and the challenges' bytes or S and the solutions': answers come to their own tasks."""
    tasks = {name: random_task(name, seed, side=3) for seed, name in enumerate("ab")}
    asked = {name: as_json(task) for name, task in tasks.items()}
    answers = {name: [pair.pop("output") for pair in task["test"]] for name, task in asked.items()}
    files = {
        b"C": (folder / "x_challenges.json", json.dumps(asked).encode()),
        b"S": (folder / "x_solutions.json", json.dumps(answers).encode()),
    }

    def run(data: bytes) -> bool:
        for kind, (path, whole) in files.items():
            path.write_bytes(data[1:] if data[:1] == kind else whole)
        tasks = read_tasks(folder)
        "".join((*tasks.refused, *tasks.notes)).encode()
        for task in (*tasks.train, *tasks.evaluation):
            assert all(pair.output is not None for pair in task.test)
            if data[:1] != b"C":
                assert [pair.input.tolist() for pair in task.test] == [p["input"] for p in asked[task.task_id]["test"]]
        return len(tasks.train) == 2

    words = b'[ ] { } , : [[ ]] [] "a" "b" "test" "output" null true -1 10 1.5 1e999 "\\ud800" \xff'.split()
    return Target(run, tuple(kind + whole for kind, (_, whole) in files.items()), tuple(words))


def parquet(folder: Path) -> Target:
    """Any Parquet file, within bounds: what it takes is what was allowed, or it is refused."""
    file, most = folder / "x.parquet", 2**22

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        try:
            with read_by_arrow(file, "x"):
                footer = footer_of(file)
                table = read_of(file, footer, range(len(footer.rows)), None, most)
        except UserError as refusal:
            str(refusal).encode()
            return False
        assert table.nbytes <= most
        return True

    tasks = [as_json(random_task("t", i, side=2 + i)) for i in range(3)]
    zeros = [{"x": [0] * 2_000, "t": "a" * 50, "n": [[], [None]]}] * 4
    words = (b"\x00", b"\x15\x00", b"\x15\xfe\xff\xff\xff\x0f", b"\xff\xff\xff\xff", b"PAR1", b"\x2c", b"\x19")
    return Target(run, (parquet_of(tasks), parquet_of(zeros)), words)


def lengths(folder: Path) -> Target:
    """The lengths of a split's rows, as they lie in a storage."""
    source = write_tasks(folder / "tasks", [random_task(f"t{i}", i) for i in range(6)])
    settings = DataConfig(dataset="folder", folder=str(source), max_tokens=400, dihedral_views=1, rows_per_group=2)
    there = publish(prepare(settings, folder / "data"), open_storage(str(folder / "storage")))
    (path,) = (folder / "storage").glob("*/train-lengths.parquet")

    def run(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            lengths = lengths_of(there, "train")
        except UserError as refusal:
            str(refusal).encode()
            return False
        assert sum(len(each) for _, _, each in lengths) == there.manifest.counts["train"].rows
        return True

    return Target(run, (path.read_bytes(),), (b"\x00", b"\xff\xff\xff\xff", b"PAR1", b"\x15\x00"))


def text(folder: Path) -> Target:
    """A file of text: as far as its passages and the groups of them."""
    path = folder / "x.txt"

    def run(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            documents = read_texts(str(path))
        except UserError as refusal:
            str(refusal).encode()
            return False
        pieces, note = passages(documents, 40)
        assert all(0 < len(each.data) <= 40 and each.data.decode() for each in pieces)
        assert sum(len(each.data) for each in pieces) == len(documents.texts["x.txt"].encode()) or note
        assert sorted(name for group in related_passages(pieces) for name in group) == sorted(
            each.name for each in pieces
        )
        return True

    seed = "One two three four five, six.\n\nMore, größer: 世界.\n\none TWO three four five six\n".encode()
    return Target(run, (seed, seed * 3), (b"\n\n", b"\xff", b"\xe4\xb8", b"\x00", b"\xef\xbb\xbf", b" ", b"\r\n"))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "arc": arc,
    "tokens": tokens,
    "yaml": yaml,
    "config": config,
    "shards": shards,
    "solutions": solutions,
    "parquet": parquet,
    "lengths": lengths,
    "text": text,
    **STORED,
}


def _configs() -> tuple[bytes, ...]:
    texts = [(ROOT / "experiments" / f"{name}.yaml").read_bytes() for name in ("smoke", "ablation")]
    grid = b"name: x\nsweep:\n  arms: [per_token, 'a.b:c']\n  seeds: [0, 1]\n  grid: {model.layers: [4, 6]}\n"
    return (*texts, grid)


def _agreeing(manifest: bytes, shard: Path) -> bytes:
    """The manifest with the shard's hash as it now is, so that what is in the shard is looked at."""
    told = Manifest.model_validate_json(manifest).model_dump(mode="json")
    told["shards"][0]["sha256"] = file_hash(shard)
    told["data_hash"] = data_hash(Shard(**each) for each in told["shards"])
    return json.dumps(told).encode()
