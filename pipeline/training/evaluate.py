"""How good is a model on the held-out tasks: loss, token accuracy, and grids decoded exactly."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from pipeline import measures
from pipeline.data import tokens
from pipeline.data.batch import IGNORED, collate
from pipeline.training.step import batch_logits, summed_loss
from tiny_onn.distributed import sum_over_workers
from tiny_onn.generate import generate
from tiny_onn.model import GridTransformer

Grid = list[list[int]]
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
) -> dict[str, float]:
    """eval/loss (nats per labelled token) and eval/token_accuracy over all rows, the same on every worker.

    Each worker takes every `world_size`-th row, each row once; sums and counts are added up over the workers.

    Args:
        autocast: in bfloat16, as `train_step`: so that the loss compares with that of training.
    """
    device = next(model.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for group in _groups(rows[rank::world_size], batch_tokens):
        batch = collate(group).to(device)
        logits = batch_logits(model, batch, autocast=autocast)
        labelled = batch.labels != IGNORED
        sums[0] += summed_loss(logits, batch.labels)
        sums[1] += ((logits.argmax(dim=-1) == batch.labels) & labelled).sum()
        sums[2] += labelled.sum()
    loss, right, count = sum_over_workers(sums).tolist()
    if not count:
        return {}
    return {measures.EVAL_LOSS: loss / count, measures.EVAL_TOKEN_ACCURACY: right / count}


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


def exact_match(predictions: Sequence[Prediction]) -> dict[str, float]:
    """eval/pairs_exact: fraction of test pairs; eval/tasks_exact: fraction of tasks with every test pair right."""
    if not predictions:
        return {}
    tasks: dict[str, bool] = {}
    for each in predictions:
        tasks[each.task_id] = tasks.get(each.task_id, True) and each.exact
    return {
        measures.EVAL_PAIRS_EXACT: sum(each.exact for each in predictions) / len(predictions),
        measures.EVAL_TASKS_EXACT: sum(tasks.values()) / len(tasks),
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
