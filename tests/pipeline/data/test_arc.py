import numpy as np
import pytest

from pipeline.data.arc import load_corpus
from pipeline.data.arc_json import RefusedTask, parse_task
from pipeline.data.related import leakage, related_groups
from pipeline.data.sources.folder import read_tasks
from pipeline.data.task import Pair, Task, grid_of
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig
from tests.pipeline.arc_samples import as_json, random_task, write_tasks


@pytest.fixture(scope="module")
def arc_1():
    return load_corpus(DataConfig(dataset="arc-agi-1"))


@pytest.fixture(scope="module")
def arc_2():
    return load_corpus(DataConfig())


def test_the_public_sets_are_whole_and_pinned(arc_1, arc_2):
    assert (len(arc_1.train), len(arc_1.evaluation)) == (400, 400)
    assert (len(arc_2.train), len(arc_2.evaluation)) == (1000, 120)
    assert arc_2.source_hash == load_corpus(DataConfig(seed=3)).source_hash != arc_1.source_hash
    assert not arc_2.refused
    assert arc_2.train[0].train[0].input.dtype == np.int8


def test_known_leaks_between_the_public_sets(arc_1, arc_2):
    assert leakage(arc_1.train, arc_1.evaluation) == [("40853293", "070dd51e"), ("caa06a1f", "50a16a69")]
    assert leakage(arc_2.train, arc_2.evaluation) == []
    assert len({other for _, other in leakage(arc_2.train, arc_1.evaluation)}) == 376


@pytest.mark.parametrize(("which", "expected"), [("arc_1", 3), ("arc_2", 2)])
def test_related_tasks_of_the_public_sets(which, expected, request):
    corpus = request.getfixturevalue(which)
    groups = related_groups([*corpus.train, *corpus.evaluation])
    pairs = sorted(sorted(task.task_id for task in group) for group in groups if len(group) > 1)
    assert len(pairs) == expected
    assert {len(pair) for pair in pairs} == {2}
    assert ["8be77c9e", "c9e6f938"] in pairs  # one mirrors downwards, the other to the right
    assert ["27a28665", "44f52bb0"] not in pairs  # one pair of 10 cells, which both answer alike by chance


def test_a_folder_may_be_named_from_home_as_the_shell_leaves_it_in_a_setting(tmp_path, monkeypatch):
    write_tasks(tmp_path / "tasks", [random_task("t0", 0)])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_corpus(DataConfig(dataset="folder", folder="~/tasks")).train) == 1


def test_a_folder_keeps_training_and_evaluation_apart(tmp_path):
    first, second, third = (random_task(name, seed) for seed, name in enumerate("abc"))
    write_tasks(tmp_path, [second])
    write_tasks(tmp_path / "training", [first])
    write_tasks(tmp_path / "evaluation", [third])
    corpus = load_corpus(DataConfig(dataset="folder", folder=str(tmp_path)))
    assert [t.task_id for t in corpus.train] == ["a", "b"]
    assert [t.task_id for t in corpus.evaluation] == ["c"]
    assert as_json(corpus.train[0]) == as_json(first)


def test_bad_files_are_refused_with_their_reason_and_the_rest_goes_on(tmp_path):
    write_tasks(tmp_path, [random_task("good", 0)])
    (tmp_path / "torn.json").write_text('{"train": [')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "twice.json").write_text('{"train": [], "train": []}')
    (tmp_path / "nothing.json").write_text("")
    corpus = load_corpus(DataConfig(dataset="folder", folder=str(tmp_path)))
    assert [t.task_id for t in corpus.train] == ["good"]
    assert not corpus.evaluation
    reasons = " ".join(corpus.refused)
    assert len(corpus.refused) == 5
    for word in ("torn.json", "bytes.json", "deep.json", "'train' stands twice", "nothing.json"):
        assert word in reasons


def test_a_files_name_cannot_steer_the_terminal(tmp_path, capfd):
    write_tasks(tmp_path, [random_task("good", 0)])
    whole = (tmp_path / "good.json").read_text()
    for name in ("a\x1b[31mred.json", "b\rback.json", "c\u202eoser.json", "d\x9b2J.json"):
        (tmp_path / name).write_text(whole)
    corpus = load_corpus(DataConfig(dataset="folder", folder=str(tmp_path)))
    assert [t.task_id for t in corpus.train] == ["good"]
    assert len(corpus.refused) == 4
    assert all(reason.isprintable() for reason in corpus.refused)
    assert "a\\x1b[31mred.json" in " ".join(corpus.refused)


def test_the_source_hash_changes_with_one_cell_and_not_with_the_place(tmp_path):
    task = random_task("a", 0)
    changed = Task("a", task.train, (Pair(task.test[0].input, (task.test[0].output + 1) % 10),))
    hashes = [
        load_corpus(DataConfig(dataset="folder", folder=str(write_tasks(tmp_path / str(i), [t])))).source_hash
        for i, t in enumerate((task, task, changed))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"absent is not there\. Expected ARC tasks: `<task id>\.json`"):
        load_corpus(DataConfig(dataset="folder", folder=str(tmp_path / "absent")))
    with pytest.raises(UserError, match="no usable training task"):
        load_corpus(DataConfig(dataset="folder", folder=str(tmp_path)))
    (tmp_path / "a.json").write_text("3")
    with pytest.raises(UserError, match="found 3; expected an object"):
        load_corpus(DataConfig(dataset="folder", folder=str(tmp_path)))


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ([[1, 2], [3]], "row 1: 1 cells, but row 0 has 2; the grid is ragged"),
        ([], "found an empty list; expected a list of rows"),
        ([[]], "row 0: found an empty list"),
        ([[0] * 31], "1x31 cells; at most 30x30"),
        ([[0]] * 31, "31x1 cells; at most 30x30"),
        ([[1, 10]], r"cell \(row 0, column 1\): found 10"),
        ([[1], [-1]], r"cell \(row 1, column 0\): found -1"),
        ([[1.5]], "found 1.5"),
        ([[1.0]], "found 1.0"),
        ([[None]], "found null"),
        ([[True]], "found true"),
        ([["1"]], 'found "1"'),
        ("1", "expected a list of rows"),
        ([7], "row 0: found 7; expected a list of cells"),
    ],
)
def test_a_bad_grid_names_its_place(grid, reason):
    good = {"input": [[0]], "output": [[1]]}
    value = {"train": [good, good], "test": [good, {"input": [[0]], "output": grid}]}
    with pytest.raises(RefusedTask, match=f"here: task t, test pair 1, output.*{reason}"):
        parse_task(value, "t", "here")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "expected an object with `train` and `test`"),
        ({"test": []}, "there is no `train`"),
        ({"train": []}, "`train` is an empty list"),
        ({"train": [3]}, "train pair 0: found 3"),
        ({"train": [{"output": [[1]]}]}, "train pair 0: there is no `input`"),
        ({"train": [{"input": [[1]]}]}, "train pair 0: there is no `output`"),
    ],
)
def test_what_is_no_task_says_so(value, reason):
    with pytest.raises(RefusedTask, match=reason):
        parse_task(value, "t", "here")


@pytest.mark.parametrize("answer", [None, [], float("nan"), [[None]], "?", "absent"])
def test_the_answer_of_a_test_pair_is_not_looked_at_for_prediction_and_needed_otherwise(answer):
    """Arrow, pandas and Hugging Face rows hold null, [] or NaN where there is no answer."""
    good = {"input": [[0]], "output": [[1]]}
    asked = {"input": [[2]]} if answer == "absent" else {"input": [[2]], "output": answer}
    task = parse_task({"train": [good], "test": [asked]}, "a", "here", for_prediction=True)
    assert (task.test[0].input.tolist(), task.test[0].output) == ([[2]], None)
    with pytest.raises(RefusedTask, match="test pair 0"):
        parse_task({"train": [good], "test": [asked]}, "a", "here")
    with pytest.raises(RefusedTask, match="train pair 0"):
        parse_task({"train": [asked], "test": [good]}, "a", "here", for_prediction=True)


def test_an_unknown_answer_is_for_prediction_only(tmp_path):
    task = Task("a", random_task("a", 0).train, (Pair(grid_of([[1]]), None),))
    file = write_tasks(tmp_path, [task]) / "a.json"
    assert read_tasks(file, for_prediction=True).train[0].test[0].output is None
    (reason,) = read_tasks(file).refused
    assert "test pair 0: there is no `output`; such a task can be predicted" in reason
