"""Answers to whole files of tasks, as Kaggle's ARC competitions take them: two attempts at each test pair."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.sources.folder import read_tasks
from pipeline.data.task import Pair, Task
from pipeline.data.tokens import encode_task
from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.training.decode import ATTEMPTS, Grid, decode_in_views, vote
from pipeline.training.model_file import TrainedModel
from pipeline.training.predictions import voting_views

_NO_ANSWER: Grid = [[0]]
Submission = dict[str, list[dict[str, Grid]]]


@dataclass(frozen=True)
class Answers:
    """`submission` by task id, for each test pair `attempt_1` and `attempt_2`; where no grid was drawn, [[0]].

    Counts of test pairs: all; those too long for the model; and others of which it drew no grid.
    """

    submission: Submission
    pairs: int
    too_long: int
    without_grid: int


def answer_file(model: TrainedModel, file: Path, submission: Path | None) -> Answers:
    """Answers all tasks of a file, in any of the formats that data sets come in, and writes the submission.

    Raises:
        UserError: a task is malformed, or there is none: a submission without some of the tasks would count as wrong;
            or the submission cannot be written.
    """
    try:
        file.stat()
        found = read_tasks(file, for_prediction=True)
    except (OSError, ValueError) as error:
        raise UserError(f"FILE {file}: cannot be read ({error}). Expected a file of ARC tasks.") from None
    if found.refused or not found.train:
        reasons = "".join(f"\n  {reason}" for reason in [*found.refused, *found.notes][:10])
        total = len(found.train) + len(found.refused)
        problem = f"of {total} tasks {len(found.refused)} cannot be read" if total else "holds no task"
        raise UserError(f"FILE {file}: {problem}:{reasons}" if reasons else f"FILE {file}: {problem}.")
    made = answer(model, found.train)
    if submission is not None:
        try:
            write_whole(submission, json.dumps(made.submission))
        except OSError as error:
            raise UserError(f"--submission {submission}: cannot be written ({error})") from None
    return made


def answer(model: TrainedModel, tasks: Sequence[Task]) -> Answers:
    """Draws two attempts at every test pair. Where there is one grid only, it is both.

    Raises:
        UserError: the model was trained on another task than ARC's.
    """
    model.require_task("arc")
    limit, views = model.experiment.data.max_tokens, voting_views(model.experiment)
    asked = [(task, pair) for task in tasks for pair in range(len(task.test))]
    fits = [_prompt_length(task, pair) < limit for task, pair in asked]
    drawn = iter(decode_in_views(model.model, [one for one, fit in zip(asked, fits, strict=True) if fit], limit, views))
    submission: Submission = {task.task_id: [] for task in tasks}
    without = 0
    for (task, _), fit in zip(asked, fits, strict=True):
        attempts = vote(next(drawn)) if fit else []
        without += fit and not attempts
        both = [*attempts, *[attempts[0] if attempts else _NO_ANSWER] * ATTEMPTS][:ATTEMPTS]
        submission[task.task_id].append({f"attempt_{n}": grid for n, grid in enumerate(both, 1)})
    return Answers(submission, len(asked), fits.count(False), without)


def _prompt_length(task: Task, pair: int) -> int:
    return len(encode_task(Task(task.task_id, task.train, (Pair(task.test[pair].input, None),)), 0))
