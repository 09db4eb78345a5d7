"""How good is a model on rows that it was not trained on: loss, token accuracy, the task's own scores, and routing."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from pipeline import measures
from pipeline.data.batch import IGNORED
from pipeline.data.contract import Task
from pipeline.data.manifest import Split
from pipeline.data.sequence import Sequence as Row
from pipeline.training.modes import in_evaluation_mode
from pipeline.training.step import batch_logits, summed_loss
from tiny_onn.distributed import sum_over_workers
from tiny_onn.routing_patterns import NOT_A_TASK, watch_routing

PATTERN_TASKS = 256  # held-out tasks whose routing patterns are compared: [modules, tasks, experts] have to be held
_TELL_EVERY_S = 1.0  # far less than a collective's time limit


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: Sequence[Row],
    batch_tokens: int,
    rank: int,
    world_size: int,
    *,
    task: Task,
    autocast: bool = False,
    patterns: bool = False,
    split: Split = "held_out",
) -> dict[str, float]:
    """Loss (nats per labelled token), token accuracy and density over all rows, the same on every worker.

    Each worker takes every `world_size`-th row, each row once; sums and counts are added up over the workers. The model
    is in evaluation mode meanwhile. Density and dead experts are those of the same tokens, in the same forward passes.

    Args:
        autocast: in bfloat16, as `train_step`: so that the loss compares with that of training.
        patterns: also measure how tasks differ in the experts that they use, and the union over neighbouring tokens;
            tasks beyond the first PATTERN_TASKS do not count. What cannot be measured on these rows, such as the
            distance between tasks where there is one, is left out.
        split: what the rows are of; the metrics are named by it.
        task: of the rows; its scores are measured, too.
    """
    device = next(model.parameters()).device
    sums = torch.zeros(3 + 2 * len(task.scores), dtype=torch.float64, device=device)
    items = {item: n for n, item in enumerate(list(dict.fromkeys(row.task_id for row in rows))[:PATTERN_TASKS])}
    with in_evaluation_mode(model), watch_routing(model, len(items) if patterns else 0) as routed:
        for group in _groups(rows[rank::world_size], batch_tokens):
            batch = task.batch(group).to(device)
            numbers = torch.tensor([items.get(row.task_id, NOT_A_TASK) for row in group], device=device)
            routed.use_rows(batch.valid, numbers)
            logits = batch_logits(model, batch, autocast=autocast)
            labelled = batch.labels != IGNORED
            sums[0] += summed_loss(logits, batch.labels)
            sums[1] += ((logits.argmax(dim=-1) == batch.labels) & labelled).sum()
            sums[2] += labelled.sum()
            for place, score in enumerate(task.scores):
                total, counted = score.measure(logits, batch)
                sums[3 + 2 * place] += total
                sums[4 + 2 * place] += counted
    loss, right, count, *scored = sum_over_workers(sums).tolist()
    routed.sum_over_workers()
    if not count:
        return {}
    evaluated = measures.Evaluated(loss, right, count, routed, patterns)
    values = {m.name: m.of_split(evaluated) for m in measures.METRICS if m.of_split is not None}
    values |= {
        score.name: scored[2 * place] / scored[2 * place + 1]
        for place, score in enumerate(task.scores)
        if scored[2 * place + 1]
    }
    return {measures.of_split(split, name): value for name, value in values.items() if value is not None}


@torch.no_grad()
def losses_of(
    model: nn.Module,
    samples: Mapping[int, Sequence[Row]],
    batch_tokens: int,
    rank: int,
    world_size: int,
    *,
    task: Task,
    autocast: bool = False,
) -> dict[int, float]:
    """The loss (nats per labelled token) on each of several samples of rows, the same on every worker.

    Each worker takes every `world_size`-th row of all. NaN for a sample without a label.
    """
    device = next(model.parameters()).device
    flat = [(row, place) for place, rows in enumerate(samples.values()) for row in rows]
    places = {id(row): place for row, place in flat}
    sums = torch.zeros(len(samples), 2, dtype=torch.float64, device=device)
    for group in _groups([row for row, _ in flat[rank::world_size]], batch_tokens):
        batch = task.batch(group).to(device)
        with in_evaluation_mode(model):
            logits = batch_logits(model, batch, autocast=autocast)
        of = torch.tensor([places[id(row)] for row in group], device=device)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        of_rows = torch.stack([loss.view_as(batch.labels), batch.labels != IGNORED], dim=-1).double().sum(dim=1)
        sums.index_add_(0, of, of_rows)
    totals = sum_over_workers(sums).tolist()
    return {number: loss / count if count else math.nan for number, (loss, count) in zip(samples, totals, strict=True)}


@contextlib.contextmanager
def together(device: torch.device) -> Iterator[Callable[[], None]]:
    """For what takes each worker a time of its own, perhaps longer than the others may wait for it in a collective.

    Every worker enters, works, and calls all the while what it is given; on leaving, each waits for all others, but
    never longer at a time than until the next call of whoever is still at work.
    """
    reported_at = time.monotonic()

    def exchange(at_work: bool) -> bool:
        return bool(sum_over_workers(torch.tensor([float(at_work)], device=device))[0] > 0)

    def alive() -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= _TELL_EVERY_S:
            exchange(True)
            reported_at = time.monotonic()

    yield alive
    while exchange(False):
        pass


def _groups(rows: Sequence[Row], budget: int) -> Iterator[list[Row]]:
    """Rows of like length together, at most `budget` padded tokens at a time."""
    group: list[Row] = []
    for row in sorted(rows, key=len):
        if group and len(row) * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
