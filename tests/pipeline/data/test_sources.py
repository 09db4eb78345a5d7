"""Tasks read from every format in use, chosen by what is in the file."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.arc import load_corpus
from pipeline.data.shards import prepare
from pipeline.data.sources import folder, json_text, packed
from pipeline.data.sources.folder import notes_on, read_tasks
from pipeline.data.split import hold_out
from pipeline.data.task import Task
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig
from tests.pipeline.arc_samples import as_json, parquet_of, random_task, write_tasks, zipped

A, B, C = (as_json(random_task(name, seed)) for seed, name in enumerate("abc"))


def put(path: Path, value: Any) -> Path:
    """Writes bytes, or a value as JSON; returns the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path.parent


def known(tasks: list[Task]) -> dict[str, dict]:
    return {task.task_id: as_json(task) for task in tasks}


def packed_lines(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.json", A, {"a": A}),
        ("a.JSON", A, {"a": A}),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(A).encode(), {"a": A}),
        ("a.json.gz", gzip.compress(json.dumps(A).encode()), {"a": A}),
        ("a.json", gzip.compress(json.dumps(A).encode()), {"a": A}),  # whatever its name says
        ("many.json", {"x": A, "y": B}, {"x": A, "y": B}),
        ("many.json", [A, B], {"many-0000": A, "many-0001": B}),
        ("many.jsonl", packed_lines({"id": "x", **A}, {"task_id": "y", **B}), {"x": A, "y": B}),
        ("many.jsonl", packed_lines(A, B) + b"\n", {"many-0000": A, "many-0001": B}),
        ("one.jsonl", packed_lines(A), {"one": A}),
        ("rows.parquet", parquet_of([{"id": "x", **A}, {"id": "y", **B}]), {"x": A, "y": B}),
        ("rows.parquet", parquet_of([{part: json.dumps(A[part]) for part in A}]), {"rows-0000": A}),
        ("all.zip", zipped({"sub/a.json": json.dumps(A).encode(), ".x.json": b"{}", "README": b""}), {"a": A}),
        ("all.zip", zipped({"a.json.gz": gzip.compress(json.dumps(A).encode()), "y.parquet": parquet_of([B])}),
         {"a": A, "y-0000": B}),
    ],
)  # fmt: skip
def test_a_file_is_read_by_what_is_in_it(name: str, data: Any, expected: dict, tmp_path: Path) -> None:
    tasks = read_tasks(put(tmp_path / name, data))
    assert known(tasks.train) == expected
    assert (tasks.refused, tasks.notes, tasks.evaluation) == ([], [], [])
    assert known(read_tasks(tmp_path / name).train) == expected  # named itself


def test_a_file_may_say_its_splits(tmp_path: Path) -> None:
    tasks = read_tasks(put(tmp_path / "x.json", {"train": {"a": A}, "eval": {"b": B, "c": C}}))
    assert (known(tasks.train), known(tasks.evaluation)) == ({"a": A}, {"b": B, "c": C})


def test_the_files_of_kaggle_are_put_together(tmp_path: Path) -> None:
    def without_answers(task: dict) -> dict:
        return {**task, "test": [{"input": pair["input"]} for pair in task["test"]]}

    def answers(task: dict) -> list:
        return [pair["output"] for pair in task["test"]]

    put(tmp_path / "arc-agi_training_challenges.json", {"a": without_answers(A), "b": without_answers(B)})
    put(tmp_path / "arc-agi_training_solutions.json", {"a": answers(A), "b": answers(B)})
    put(tmp_path / "arc-agi_evaluation_challenges.json", {"c": without_answers(C)} | {"b": without_answers(A)})
    put(tmp_path / "arc-agi_evaluation_solutions.json", {"c": answers(C), "b": answers(A)})
    put(tmp_path / "arc-agi_test_challenges.json", {"c": without_answers(C), "b": without_answers(A)})
    put(tmp_path / "sample_submission.json", {"c": [{"attempt_1": [[0]], "attempt_2": [[0]]}]})
    tasks = read_tasks(tmp_path)
    assert known(tasks.train) == {"a": A, "arc-agi_training_challenges.json/b": B}
    assert known(tasks.evaluation) == {"c": C, "arc-agi_evaluation_challenges.json/b": A}
    assert tasks.refused == []
    assert tasks.notes == [
        "ignored: sample_submission.json (a submission: answers, no tasks)",
        "ignored: arc-agi_test_challenges.json (2 tasks without answers: to be predicted, not to learn from)",
    ]
    asked = read_tasks(tmp_path / "arc-agi_test_challenges.json", for_prediction=True)
    assert known(asked.train) == {"c": without_answers(C), "b": without_answers(A)}


def test_a_task_whose_solution_is_missing_is_refused_by_itself(tmp_path: Path) -> None:
    asked = {name: {**task, "test": [{"input": [[1]]}]} for name, task in (("a", A), ("b", B))}
    put(tmp_path / "x_challenges.json", asked)
    tasks = read_tasks(put(tmp_path / "x_solutions.json", {"a": [[[7]]], "b": [[[7]], [[8]]]}))
    assert [task.test[0].output.tolist() for task in tasks.train] == [[[7]]]  # type: ignore[union-attr]
    (reason,) = tasks.refused
    assert "task b, test pair 0: there is no `output`" in reason


PAIRS = [{"input": [[n, n + 1, 3]], "output": [[n]]} for n in range(7)]


@pytest.mark.parametrize("data", [PAIRS, packed_lines(*PAIRS), parquet_of(PAIRS)], ids=["json", "lines", "parquet"])
def test_a_list_of_pairs_becomes_tasks_if_their_size_is_given(data: Any, tmp_path: Path) -> None:
    tasks = read_tasks(put(tmp_path / "rule.json", data), pairs_per_task=3)
    assert [task.task_id for task in tasks.train] == ["rule-0000", "rule-0001"]  # the seventh is left over
    used = [pair for task in tasks.train for pair in as_json(task)["train"] + as_json(task)["test"]]
    assert len(used) == 6
    assert all(pair in PAIRS for pair in used)
    assert len({json.dumps(pair) for pair in used}) == 6
    assert [len(task.test) for task in tasks.train] == [1, 1]
    again = read_tasks(tmp_path / "rule.json", pairs_per_task=3)
    assert known(again.train) == known(tasks.train)
    assert known(read_tasks(tmp_path, 3, seed=1).train) != known(tasks.train)
    (reason,) = read_tasks(tmp_path).refused
    assert "a list of 7 pairs, and no task; set data.pairs_per_task, for example to 4" in reason
    (reason,) = read_tasks(tmp_path, 8).refused
    assert "a list of 7 pairs, fewer than data.pairs_per_task=8" in reason


def test_tasks_made_of_one_list_are_never_cut_apart(tmp_path: Path) -> None:
    many = [{"input": [[n % 10, n // 10, 3], [1, 2, n % 7]], "output": [[n % 10]]} for n in range(60)]
    for name in ("one", "two", "three"):
        put(tmp_path / f"{name}.json", [{**pair, "output": [[len(name), 0], pair["output"][0] * 2]} for pair in many])
    tasks = read_tasks(tmp_path, pairs_per_task=4)
    assert len(tasks.train) == 45
    for seed in range(4):
        sides = [{task.task_id.split("-")[0] for task in side} for side in hold_out(tasks.train, 0.4, seed)]
        assert sides[0].isdisjoint(sides[1])
        assert all(sides)
    config = DataConfig(dataset="folder", folder=str(put(tmp_path / "o" / "one.json", many)), pairs_per_task=4)
    with pytest.raises(UserError, match=r"all 15 tasks are related, .* made of one list of pairs"):
        prepare(config, tmp_path / "data")


def test_a_clone_is_read_with_its_sub_folders(tmp_path: Path) -> None:
    put(tmp_path / "data" / "training" / "a.json", A)
    put(tmp_path / "data" / "evaluation" / "sub" / "b.json", B)
    put(tmp_path / "additions" / "x" / "c.json", C)
    put(tmp_path / "additions" / "d.json", C)
    put(tmp_path / ".git" / "x.json", b"no")
    put(tmp_path / "data" / "training" / ".hidden.json", b"no")
    put(tmp_path / "README.md", b"[no]")
    tasks = read_tasks(tmp_path)
    assert (known(tasks.train), known(tasks.evaluation)) == ({"a": A}, {"b": B})
    assert (tasks.refused, tasks.notes) == ([], ["ignored: additions/ (2 data files)"])


@pytest.mark.parametrize(("folders", "evaluates"), [(("train", "test"), True), (("corpus", "test"), False)])
def test_a_folder_test_holds_evaluation_tasks_beside_one_for_training_alone(
    folders: tuple[str, str], evaluates: bool, tmp_path: Path
) -> None:
    put(tmp_path / folders[0] / "a.json", A)
    put(tmp_path / folders[1] / "b.json", B)
    tasks = read_tasks(tmp_path)
    assert known(tasks.evaluation) == ({"b": B} if evaluates else {})
    assert known(tasks.train) == ({"a": A} if evaluates else {"a": A, "b": B})


def test_tasks_of_one_name_are_distinguished_by_their_folders_and_copies_taken_once(tmp_path: Path) -> None:
    put(tmp_path / "one" / "x.json", A)
    put(tmp_path / "two" / "x.json", B)
    put(tmp_path / "two" / "y.json", C)
    put(tmp_path / "three" / "copy.json", A)
    tasks = read_tasks(tmp_path)
    assert known(tasks.train) == {"one/x": A, "two/x": B, "y": C}
    assert tasks.notes == ["taken once: 1 task that is a copy of another: three/copy.json (of one/x.json)"]
    put(tmp_path / "evaluation" / "x.json", A)  # of the other split: a leak, which is looked for later
    tasks = read_tasks(tmp_path)
    assert known(tasks.evaluation) == {"evaluation/x": A}


def test_keys_that_are_not_read_are_named_once(tmp_path: Path) -> None:
    put(tmp_path / "a.json", {**A, "arc-gen": [{"input": [[1]], "output": [[1]]}] * 200, "name": "a"})
    put(tmp_path / "b.json", {**B, "arc-gen": [{"input": [[1]], "output": [[1]]}] * 62, "level": 3})
    assert read_tasks(tmp_path).notes == [
        "not read: key `arc-gen` (262 entries); tasks are their `train` and `test`",
        "not read: key `level`; tasks are their `train` and `test`",
    ]


def test_a_test_pair_among_its_own_demonstrations_is_reported(tmp_path: Path) -> None:
    own = {**A, "test": [B["test"][0], A["train"][1]]}
    put(tmp_path / "own.json", own)
    put(tmp_path / "b.json", B)
    tasks = read_tasks(tmp_path)
    assert notes_on(tasks.train) == ["1 test pair also among the task's own demonstrations: own (test pair 1)"]
    assert load_corpus(DataConfig(dataset="folder", folder=str(tmp_path))).notes == tuple(notes_on(tasks.train))


def refusal(tmp_path: Path, name: str, data: bytes) -> str:
    put(tmp_path / name, data)
    tasks = read_tasks(tmp_path)
    assert tasks.train == []
    (reason,) = tasks.refused
    assert reason.startswith(str(tmp_path / name))
    return reason


@pytest.mark.parametrize("name", ["../a.json", "/a.json", "x/../../a.json", "..\\a.json", "C:\\a.json"])
def test_an_archive_that_names_a_place_outside_of_it_is_refused(name: str, tmp_path: Path) -> None:
    assert "which leads out of the archive" in refusal(tmp_path, "x.zip", zipped({name: json.dumps(A).encode()}))


def test_what_is_packed_small_and_is_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGEST_FILE", 1000)
    bomb = b"[" + b" " * 2000 + b"]"
    assert "more than 1000 bytes when unpacked" in refusal(tmp_path / "1", "x.json.gz", gzip.compress(bomb))
    assert "x.zip/a.json: has more than 1000 bytes" in refusal(tmp_path / "2", "x.zip", zipped({"a.json": bomb}))
    monkeypatch.setattr(packed, "_LARGEST_ARCHIVE", 3000)
    many = zipped({f"{n}.json": b"[" + b" " * 900 + b"]" for n in range(4)})
    assert "more than 3000 bytes when unpacked" in refusal(tmp_path / "3", "x.zip", many)
    monkeypatch.setattr(packed, "_MOST_FILES", 3)
    assert "holds 4 files; at most 3" in refusal(tmp_path / "4", "x.zip", many)


def test_what_is_small_and_takes_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MOST_MEMORY", 100_000)
    lists = b"[" + b"[]," * 2_000 + b"[]]"
    for number, data in enumerate((gzip.compress(lists), gzip.compress(lists[:1000] + b"[]]\n" + lists))):
        assert "would take 1" in refusal(tmp_path / str(number), "x.json.gz", data)
    monkeypatch.setattr(folder, "_MOST_MEMORY", 20_000)
    many = put(tmp_path / "many" / "a.zip", zipped({f"{n}.json": json.dumps(A).encode() for n in range(9)}))
    with pytest.raises(
        UserError, match=r"many cannot be read \(.*a\.zip/\d\.json: with the files before it, .* 20,000"
    ):
        load_corpus(DataConfig(dataset="folder", folder=str(many)))


def test_an_archive_that_lies_about_the_size_of_a_file_is_read_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LARGEST_FILE", 1000)
    honest = zipped({"a.json": b" " * 50_000})
    lying = honest.replace((50_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lying != honest
    reason = refusal(tmp_path, "x.zip", lying)
    assert "cannot be read" in reason or "not valid JSON" in reason or "more than 1000" in reason


def test_archives_in_archives_are_not_opened(tmp_path: Path) -> None:
    inner = zipped({"a.json": json.dumps(A).encode()})
    assert "an archive in an archive" in refusal(tmp_path / "1", "x.zip", zipped({"y.zip": inner}))
    assert "an archive in an archive" in refusal(tmp_path / "2", "x.gz", gzip.compress(gzip.compress(b"{}")))
    assert "an archive in an archive" in refusal(tmp_path / "3", "x.gz", gzip.compress(inner))


def test_an_encrypted_or_damaged_archive_is_refused(tmp_path: Path) -> None:
    whole = zipped({"a.json": json.dumps(A).encode()})
    assert "expected a zip archive" in refusal(tmp_path / "1", "x.zip", whole[:-30])
    encrypted = bytearray(whole)
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        encrypted[whole.index(mark) + (6 if mark[2] == 3 else 8)] |= 1
    assert "encrypted" in refusal(tmp_path / "2", "x.zip", bytes(encrypted))
    assert "cannot be unpacked" in refusal(tmp_path / "3", "x.json.gz", gzip.compress(json.dumps(A).encode())[:-20])


def test_a_file_without_a_name_in_an_archive_is_passed_over(tmp_path: Path) -> None:
    whole = zipped({"a.json": json.dumps(A).encode(), "b.json": b""})
    nameless = whole.replace(b"b.json", b"\x00.json")  # zipfile ends a name at the first zero byte
    assert nameless != whole
    assert known(read_tasks(put(tmp_path / "x.zip", nameless)).train) == {"a": A}


def test_a_text_nested_without_end_is_refused_also_in_an_archive(tmp_path: Path) -> None:
    assert "not valid JSON" in refusal(tmp_path / "1", "x.zip", zipped({"a.json": b"[" * 200_000}))
    assert "not valid JSON" in refusal(tmp_path / "2", "x.jsonl", packed_lines(A) + b"[" * 200_000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (packed_lines(A, B)[:-20], "line 2 is not valid JSON"),
        (json.dumps(A, indent=1).encode()[:-20], "not valid JSON"),
        (parquet_of([{"train": 1, "else": 2}]), "has the columns train, else; expected `train` and `test`"),
        (parquet_of([A])[:-9], "expected Parquet"),
        (parquet_of([{"input": [[1.5]], "output": [[1]]}] * 2), "found 1.5"),
        (b"", "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not valid JSON"),
    ],
)
def test_what_is_in_no_format_says_so(data: bytes, reason: str, tmp_path: Path) -> None:
    put(tmp_path / "x.json", data)
    tasks = read_tasks(tmp_path, pairs_per_task=2)
    assert tasks.train == []
    assert reason in tasks.refused[0]


def test_a_link_back_to_a_folder_above_is_gone_through_once(tmp_path: Path) -> None:
    put(tmp_path / "sub" / "a.json", A)
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    tasks = read_tasks(tmp_path)
    assert known(tasks.train) == {"a": A}
    assert len(tasks.refused) == 1


def test_too_long_tasks_are_reported_in_numbers(tmp_path: Path) -> None:
    """Four pairs of 1x1 have 29 tokens; a task of n columns has 8 more for each."""
    tasks = []
    for columns in (5, 9, 2, 7):
        pair = {"input": [[n % 10 for n in range(columns)]], "output": [[1] * columns]}
        tasks.append({"train": [pair] * 3, "test": [pair]})
    for number, task in enumerate(tasks):
        put(tmp_path / "t" / f"{number}.json", task)
    lengths = sorted(4 * (2 * columns + 5) + 1 for columns in (5, 9, 2, 7))
    assert lengths == [37, 61, 77, 93]

    def refused(limit: int) -> str:
        config = DataConfig(dataset="folder", folder=str(tmp_path / "t"), max_tokens=limit)
        with pytest.raises(UserError) as error:
            prepare(config, tmp_path / "data")
        return str(error.value)

    assert "4 tasks, all longer than 36 tokens; the shortest has 37, half fit in 61. Raise data.max_tokens" in refused(
        36
    )
    assert "4 tasks, all but 1 longer than 60 tokens; the shortest has 37, half fit in 61" in refused(60)


def test_notes_stand_in_the_manifest_and_are_those_of_now(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "t", [random_task(f"t{i}", i, side=6) for i in range(8)])
    config = DataConfig(dataset="folder", folder=str(folder), max_tokens=2000)
    first = prepare(config, tmp_path / "data")
    assert first.manifest.notes == ()
    put(folder / "sample_submission.json", {"x": [{"attempt_1": [[0]], "attempt_2": [[0]]}]})
    again = prepare(config, tmp_path / "data")
    assert again.folder == first.folder
    assert again.manifest.notes == ("ignored: sample_submission.json (a submission: answers, no tasks)",)


def test_a_zip_is_read_from_the_disk_and_member_by_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("arc/training/a.json", json.dumps(A))
        archive.writestr("arc/evaluation/b.json", json.dumps(B))
        archive.writestr("__MACOSX/arc/training/a.json", b"no")
    tasks = read_tasks(tmp_path)
    assert (known(tasks.train), known(tasks.evaluation)) == ({"a": A}, {"b": B})
