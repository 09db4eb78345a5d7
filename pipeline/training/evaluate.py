"""How good is a model on tasks that it was not trained on: loss, token accuracy, and grids decoded exactly."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from pipeline import measures
from pipeline.data import tokens
from pipeline.data.batch import IGNORED, collate
from pipeline.data.manifest import Split
from pipeline.data.task import Task
from pipeline.settings.config import Experiment
from pipeline.training.decode import Grid, draw_in_views, task_of, vote
from pipeline.training.step import batch_logits, summed_loss
from tiny_onn.distributed import sum_over_workers
from tiny_onn.model import GridTransformer
from tiny_onn.routing_patterns import NOT_A_TASK, watch_routing

PATTERN_TASKS = 256  # held-out tasks whose routing patterns are compared: [modules, tasks, experts] have to be held
_TELL_EVERY_S = 1.0  # far less than a collective's time limit


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


@torch.no_grad()
def evaluate(
    model: GridTransformer,
    rows: Sequence[tokens.Sequence],
    batch_tokens: int,
    rank: int,
    world_size: int,
    *,
    autocast: bool = False,
    patterns: bool = False,
    split: Split = "held_out",
) -> dict[str, float]:
    """Loss (nats per labelled token), token accuracy and density over all rows, the same on every worker.

    Each worker takes every `world_size`-th row, each row once; sums and counts are added up over the workers. Density
    and dead experts are those of the same tokens, in the same forward passes.

    Args:
        autocast: in bfloat16, as `train_step`: so that the loss compares with that of training.
        patterns: also measure how tasks differ in the experts that they use, and the union over neighbouring tokens;
            tasks beyond the first PATTERN_TASKS do not count. What cannot be measured on these rows, such as the
            distance between tasks where there is one, is left out.
        split: what the rows are of; the metrics are named by it.
    """
    device = next(model.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    tasks = {task: n for n, task in enumerate(list(dict.fromkeys(row.task_id for row in rows))[:PATTERN_TASKS])}
    with watch_routing(model, len(tasks) if patterns else 0) as routed:
        for group in _groups(rows[rank::world_size], batch_tokens):
            batch = collate(group).to(device)
            numbers = torch.tensor([tasks.get(row.task_id, NOT_A_TASK) for row in group], device=device)
            routed.use_rows(batch.valid, numbers)
            logits = batch_logits(model, batch, autocast=autocast)
            labelled = batch.labels != IGNORED
            sums[0] += summed_loss(logits, batch.labels)
            sums[1] += ((logits.argmax(dim=-1) == batch.labels) & labelled).sum()
            sums[2] += labelled.sum()
    loss, right, count = sum_over_workers(sums).tolist()
    routed.sum_over_workers()
    if not count:
        return {}
    found = measures.Evaluated(loss, right, count, routed, patterns)
    values = {m.name: m.of_split(found) for m in measures.METRICS if m.of_split is not None}
    return {measures.of_split(split, name): value for name, value in values.items() if value is not None}


def predict(
    model: GridTransformer,
    rows: Sequence[tokens.Sequence],
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
    drawn = draw_in_views(model, [(task, 0) for task in tasks], limit, views, alive)
    return [_judge(row.pair, task, grids) for row, task, grids in zip(rows, tasks, drawn, strict=True)]


def voting_views(experiment: Experiment) -> int:
    """How many views of a task vote: no others than are trained on, in which a model may be at a loss."""
    return min(experiment.training.vote_views, experiment.data.dihedral_views)


@contextlib.contextmanager
def together(device: torch.device) -> Iterator[Callable[[], None]]:
    """For what takes each worker a time of its own, perhaps longer than the others may wait for it in a collective.

    Every worker enters, works, and calls all the while what it is given; on leaving, each waits for all others, but
    never longer at a time than until the next call of whoever is still at work.
    """
    told = time.monotonic()

    def exchange(at_work: bool) -> bool:
        return bool(sum_over_workers(torch.tensor([float(at_work)], device=device))[0] > 0)

    def alive() -> None:
        nonlocal told
        if time.monotonic() - told >= _TELL_EVERY_S:
            exchange(True)
            told = time.monotonic()

    yield alive
    while exchange(False):
        pass


def exact_match(predictions: Sequence[Prediction], split: Split = "held_out") -> dict[str, float]:
    """<split>/pairs_exact: fraction of test pairs right; /tasks_exact: of tasks with every test pair right;
    /pass_at_2: of test pairs that one of two attempts gets right.
    """
    if not predictions:
        return {}
    tasks: dict[str, bool] = {}
    for each in predictions:
        tasks[each.task_id] = tasks.get(each.task_id, True) and each.exact
    found = {
        measures.HELD_OUT_PAIRS_EXACT: sum(each.exact for each in predictions) / len(predictions),
        measures.HELD_OUT_TASKS_EXACT: sum(tasks.values()) / len(tasks),
        measures.HELD_OUT_PASS_AT_2: sum(each.target in each.attempts for each in predictions) / len(predictions),
    }
    return {measures.of_split(split, name): value for name, value in found.items()}


def _judge(pair: int, task: Task, drawn: Sequence[Grid | None]) -> Prediction:
    (test,) = task.test
    assert test.output is not None
    target = test.output.tolist()
    return Prediction(task.task_id, pair, test.input.tolist(), target, drawn[0], drawn[0] == target, vote(drawn))


def _groups(rows: Sequence[tokens.Sequence], budget: int) -> Iterator[list[tokens.Sequence]]:
    """Rows of like length together, at most `budget` padded tokens at a time."""
    group: list[tokens.Sequence] = []
    for row in sorted(rows, key=len):
        if group and len(row) * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
