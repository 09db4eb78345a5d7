"""Which rows make which batch on which rank: a pure function of lengths, seed, epoch and world size.

Every rank computes the plan of all ranks, so that all know without a word between them how many steps there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from pipeline.data.randomness import generator

# A window is what a rank holds in memory: rows are mixed and sorted into batches within it.
WINDOW_GROUPS = 16
WINDOW_ROWS = 256  # of a rank's window where the rows of one task are spread over row groups
# Every row of a batch is at least this part of its longest as long, so less than half of a batch is padding; as rows
# are sorted first, it is far less but for the last batch of a window.
SHORTEST = 0.5

Address = tuple[int, int]  # (row group, row in it)


class UnequalSteps(ValueError):
    """A rank has fewer rows than another has batches; nothing can be dropped or doubled, so there is no plan."""

    def __init__(self, rank: int, rows: int, steps: int) -> None:
        super().__init__(f"rank {rank} gets {rows} rows, but another rank needs {steps} steps")
        self.rank, self.rows, self.steps = rank, rows, steps


@dataclass(frozen=True)
class PlannedBatch:
    """The rows of one batch, longest first, and the window that they come from."""

    window: int
    rows: tuple[Address, ...]
    longest: int

    @property
    def padded_tokens(self) -> int:
        """Tokens with padding."""
        return len(self.rows) * self.longest


Plan = tuple[tuple[PlannedBatch, ...], ...]


def plan_epoch(
    lengths: Sequence[np.ndarray], seed: int, epoch: int, world_size: int, budget: int, window: int = WINDOW_GROUPS
) -> Plan:
    """For each rank its batches in order, as many as every other rank's; each row is in exactly one batch of one rank.

    `lengths[g]` are the lengths of row group g's rows. A batch has at most `budget` tokens, padding included; no row
    may be longer than that. Row groups are permuted and dealt out in turn; within a window of row groups rows are
    shuffled, sorted by length into batches, and the batches shuffled. A rank that has fewer batches than another
    splits its largest.

    Raises:
        UnequalSteps: a rank has fewer rows than another rank has batches.
    """
    order = generator("row groups", seed, epoch, world_size).permutation(len(lengths)).tolist()
    ranks = []
    for rank in range(world_size):
        mine = order[rank::world_size]
        batches: list[PlannedBatch] = []
        for number, start in enumerate(range(0, len(mine), window)):
            rows = [(group, row) for group in mine[start : start + window] for row in range(len(lengths[group]))]
            shuffled = generator("rows", seed, epoch, world_size, rank, number).permutation(len(rows))
            batches += _cut([rows[i] for i in shuffled], lengths, budget, number)
        ranks.append(batches)
    steps = max(map(len, ranks))
    return tuple(
        tuple(_shuffled(_split_until(steps, batches, lengths, rank), (seed, epoch, world_size, rank)))
        for rank, batches in enumerate(ranks)
    )


def plan_pass(
    groups: Mapping[int, Sequence[int]],
    lengths: Sequence[np.ndarray],
    key: tuple[str | int, ...],
    world_size: int,
    budget: int,
    window: int = WINDOW_ROWS,
) -> Plan:
    """For each rank its batches of one pass over the rows of one task, as many as every other rank's.

    `groups[g]` are the task's rows in row group g. A batch has at most `budget` tokens, padding included; no row may be
    longer than that. Each row is in exactly one batch of one rank, but where the rows of a window cannot be divided by
    the number of ranks: then its first ones are taken once more, one for each rank that would have a row less. The
    order of the rows is a function of `key` alone, and they are dealt to the ranks in turn.
    """
    order = generator("row groups of a task", *key).permutation(len(groups))
    listed = [(group, row) for group in (list(groups)[place] for place in order) for row in groups[group]]
    ranks: list[list[PlannedBatch]] = [[] for _ in range(world_size)]
    for number, start in enumerate(range(0, len(listed), window * world_size)):
        rows = listed[start : start + window * world_size]
        shuffled = [rows[place] for place in generator("rows of a task", *key, number).permutation(len(rows))]
        each = -(-len(rows) // world_size)
        dealt = list(islice(cycle(shuffled), each * world_size))
        for rank, batches in enumerate(ranks):
            batches += _cut(dealt[rank::world_size], lengths, budget, number)
    steps = max(map(len, ranks))
    return tuple(
        tuple(_shuffled(_split_until(steps, batches, lengths, rank), ("of a task", *key)))
        for rank, batches in enumerate(ranks)
    )


def _cut(rows: list[Address], lengths: Sequence[np.ndarray], budget: int, window: int) -> list[PlannedBatch]:
    """Rows sorted by length, cut wherever the next would break the budget or be too short for its batch."""
    ordered = sorted(((int(lengths[group][row]), (group, row)) for group, row in rows), key=lambda pair: -pair[0])
    batches: list[PlannedBatch] = []
    start = 0
    for stop in range(1, len(ordered) + 1):
        longest = ordered[start][0]
        full = (stop - start + 1) * longest > budget
        if stop == len(ordered) or full or ordered[stop][0] < SHORTEST * longest:
            batches.append(PlannedBatch(window, tuple(address for _, address in ordered[start:stop]), longest))
            start = stop
    return batches


def _split_until(
    steps: int, batches: list[PlannedBatch], lengths: Sequence[np.ndarray], rank: int
) -> list[PlannedBatch]:
    rows = sum(len(batch.rows) for batch in batches)
    if rows < steps:
        raise UnequalSteps(rank, rows, steps)
    batches = list(batches)
    while len(batches) < steps:
        index = max((i for i, b in enumerate(batches) if len(b.rows) > 1), key=lambda i: batches[i].padded_tokens)
        whole = batches[index]
        half = (len(whole.rows) + 1) // 2
        group, row = whole.rows[half]
        # The rows are sorted, so the second half is as long as its first row.
        batches[index : index + 1] = [
            PlannedBatch(whole.window, whole.rows[:half], whole.longest),
            PlannedBatch(whole.window, whole.rows[half:], int(lengths[group][row])),
        ]
    return batches


def _shuffled(batches: list[PlannedBatch], key: tuple[str | int, ...]) -> list[PlannedBatch]:
    """Batches in random order within each window; windows stay in order."""
    chance = generator("batches", *key).permutation(len(batches))
    order = sorted(range(len(batches)), key=lambda i: (batches[i].window, chance[i]))
    return [batches[i] for i in order]
