"""How good is a model on tasks that it was not trained on: loss, token accuracy, and grids decoded exactly."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from pipeline import measures
from pipeline.data import tokens
from pipeline.data.batch import IGNORED, collate
from pipeline.data.manifest import Split
from pipeline.training.step import batch_logits, summed_loss
from tiny_onn.distributed import sum_over_workers
from tiny_onn.generate import generate
from tiny_onn.model import GridTransformer
from tiny_onn.routing_patterns import NOT_A_TASK, watch_routing

Grid = list[list[int]]
PATTERN_TASKS = 256  # held-out tasks whose routing patterns are compared: [modules, tasks, experts] have to be held
_OF_PATTERNS = (measures.UNION_OF_CHUNK, measures.TASK_INFORMATION, measures.TASK_DISTANCE)
_TELL_EVERY_S = 1.0  # far less than a collective's time limit


@dataclass(frozen=True)
class Prediction:
    """A greedy prediction of one test pair. `prediction` is None where what the model said is no grid."""

    task_id: str
    pair: int
    input: Grid
    target: Grid
    prediction: Grid | None
    exact: bool

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
    found = {measures.HELD_OUT_LOSS: loss / count, measures.HELD_OUT_TOKEN_ACCURACY: right / count}
    found |= {measures.DENSITY: routed.density(), measures.DEAD_EXPERTS: routed.dead_experts()}
    if patterns:
        found[measures.UNION_OF_CHUNK] = routed.union_of_chunk()
        found[measures.TASK_INFORMATION] = routed.task_information()
        found[measures.TASK_DISTANCE] = routed.task_distance()
    return {
        measures.of_split(split, name): value
        for name, value in found.items()
        if name not in _OF_PATTERNS or math.isfinite(value)
    }


def predict(
    model: GridTransformer,
    rows: Sequence[tokens.Sequence],
    limit: int,
    batch_size: int = 16,
    alive: Callable[[], None] = lambda: None,
) -> list[Prediction]:
    """Greedy predictions of rows that end in one test pair each; up to `limit` tokens with the prompt.

    They are computed in the precision of the model's weights, as a model that is loaded does: what it predicts is then
    what was counted here. `alive` is called before each token.
    """
    drawn = draw(model, [prompt_of(row) for row in rows], limit, batch_size, alive)
    return [_judge(row, grid) for row, grid in zip(rows, drawn, strict=True)]


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


def draw(
    model: GridTransformer,
    prompts: Sequence[tokens.Sequence],
    limit: int,
    batch_size: int = 16,
    alive: Callable[[], None] = lambda: None,
) -> list[Grid | None]:
    """The grid that the model draws after each prompt, greedily; None where what it says is no grid.

    A few at a time, the longest together, so that little is decoded for nothing. `alive` is called before each token.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: dict[int, Grid | None] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = collate([prompts[place] for place in places]).to(device)
        lengths = torch.tensor([len(prompts[place]) for place in places], device=device)
        said = generate(
            model,
            batch.tokens,
            batch.rows,
            batch.columns,
            lengths,
            limit=limit,
            stop=tokens.END,
            advance=tokens.advance,
            alive=alive,
        )
        found |= dict(zip(places, map(_grid, said), strict=True))
    return [found[place] for place in range(len(prompts))]


def prompt_of(row: tokens.Sequence) -> tokens.Sequence:
    """The row up to its last OUTPUT: what a model is given before it draws the answer."""
    end = tokens.prompt_length(row.tokens)
    return tokens.Sequence(
        row.tokens[:end], row.rows[:end], row.columns[:end], row.labelled[:end], row.task_id, row.pair
    )


def exact_match(predictions: Sequence[Prediction], split: Split = "held_out") -> dict[str, float]:
    """<split>/pairs_exact: fraction of test pairs right; <split>/tasks_exact: of tasks with every test pair right."""
    if not predictions:
        return {}
    tasks: dict[str, bool] = {}
    for each in predictions:
        tasks[each.task_id] = tasks.get(each.task_id, True) and each.exact
    return {
        measures.of_split(split, measures.HELD_OUT_PAIRS_EXACT): sum(each.exact for each in predictions)
        / len(predictions),
        measures.of_split(split, measures.HELD_OUT_TASKS_EXACT): sum(tasks.values()) / len(tasks),
    }


def _judge(row: tokens.Sequence, grid: Grid | None) -> Prediction:
    given, target = tokens.decode_sequence(row.tokens)[-1]
    assert target is not None
    return Prediction(row.task_id, row.pair, given.tolist(), target.tolist(), grid, grid == target.tolist())


def _grid(said: list[int]) -> Grid | None:
    try:
        return tokens.decode_grid(said).tolist()
    except tokens.NotDecodable:
        return None


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
