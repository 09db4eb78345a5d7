"""Answers to whole files of tasks, as Kaggle's ARC competitions take them: two attempts at each test pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.model_use import Answers
from pipeline.data.sources.folder import read_tasks
from pipeline.data.task import Pair, Task
from pipeline.data.tokens import encode_task
from pipeline.errors import UserError
from pipeline.tasks.arc_decode import ATTEMPTS, Grid, decode_in_views, vote
from pipeline.tasks.arc_predictions import voting_views
from pipeline.training.model_file import TrainedModel

_NO_ANSWER: Grid = [[0]]
Submission = dict[str, list[dict[str, Grid]]]


@dataclass(frozen=True)
class ArcAnswers(Answers):
    """`values`, a submission: by task id, for each test pair `attempt_1` and `attempt_2`; [[0]] where there is no grid.

    Counts of test pairs: all; those too long for the model; and others of which it drew no grid.
    """

    pairs: int
    too_long: int
    without_grid: int


def answer_file(model: TrainedModel, file: Path) -> ArcAnswers:
    """Answers all tasks of a file, in any of the formats that data sets come in.

    Raises:
        UserError: a task is malformed, or there is none: a submission without some of the tasks would count as wrong.
    """
    try:
        file.stat()
        tasks = read_tasks(file, for_prediction=True)
    except (OSError, ValueError) as error:
        raise UserError(f"FILE {file}: cannot be read ({error}). Expected a file of ARC tasks.") from None
    if tasks.refused or not tasks.train:
        reasons = "".join(f"\n  {reason}" for reason in [*tasks.refused, *tasks.notes][:10])
        total = len(tasks.train) + len(tasks.refused)
        problem = f"of {total} tasks {len(tasks.refused)} cannot be read" if total else "holds no task"
        raise UserError(f"FILE {file}: {problem}:{reasons}" if reasons else f"FILE {file}: {problem}.")
    return answer(model, tasks.train)


def answer(model: TrainedModel, tasks: Sequence[Task]) -> ArcAnswers:
    """Draws two attempts at every test pair. Where there is one grid only, it is both."""
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
    too_long = fits.count(False)
    return ArcAnswers(submission, _summary(len(tasks), len(asked), too_long, without), len(asked), too_long, without)


def _summary(tasks: int, pairs: int, too_long: int, without_grid: int) -> str:
    words = f"{tasks} task{'s' * (tasks != 1)}, {pairs} test pair{'s' * (pairs != 1)}"
    words += f"; {too_long} too long for the model, answered with [[0]]" if too_long else ""
    return words + (f"; {without_grid} without a grid drawn, answered with [[0]]" if without_grid else "")


def _prompt_length(task: Task, pair: int) -> int:
    return len(encode_task(Task(task.task_id, task.train, (Pair(task.test[pair].input, None),)), 0))
