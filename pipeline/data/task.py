"""What an ARC task is, and whether two sets of them share an answer."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MAX_SIDE = 30
COLOURS = 10


@dataclass(frozen=True, eq=False)
class Pair:
    """An input grid [H, W] of int8 colours 0..9 and its output grid, of another size perhaps; None if it is unknown."""

    input: np.ndarray
    output: np.ndarray | None

    @property
    def content(self) -> bytes:
        """Both grids as bytes, equal for equal pairs only. The shape is part: 1x4 and 2x2 of the same cells differ."""
        grids = (self.input, self.output)
        return b";".join(b"none" if g is None else repr(g.shape).encode() + g.tobytes() for g in grids)


@dataclass(frozen=True, eq=False)
class Task:
    """Demonstrations (`train`) and the pairs to be solved (`test`); at least one of each."""

    task_id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Demonstrations first, then the pairs to be solved."""
        return self.train + self.test


def pair_hashes(tasks: Iterable[Task]) -> dict[str, list[str]]:
    """hash of (input, output) -> the ids of the tasks that hold this pair. Pairs without an output have no answer."""
    holders: dict[str, list[str]] = {}
    for task in tasks:
        for digest in _pair_hashes(task):
            holders.setdefault(digest, []).append(task.task_id)
    return holders


def leakage(train: Iterable[Task], other: Iterable[Task]) -> list[tuple[str, str]]:
    """Every (train task id, other task id) that share an identical pair, sorted. Names of tasks are not compared.

    `train` may be many, each task in all its views: they are gone through once, and not kept.
    """
    known = pair_hashes(other)
    if not known:
        return []
    found = {
        (task.task_id, theirs) for task in train for digest in _pair_hashes(task) for theirs in known.get(digest, [])
    }
    return sorted(found)


def _pair_hashes(task: Task) -> set[str]:
    return {hashlib.sha256(pair.content).hexdigest() for pair in task.pairs if pair.output is not None}


def grid_of(cells: object) -> np.ndarray:
    """`cells`, known to be a good grid, as read-only int8 [H, W]."""
    wide = np.asarray(cells)
    assert wide.ndim == 2
    assert min(wide.shape) >= 1, wide.shape
    assert max(wide.shape) <= MAX_SIDE, wide.shape
    assert 0 <= wide.min() <= wide.max() < COLOURS, np.unique(wide)
    grid = np.ascontiguousarray(wide, dtype=np.int8)
    grid.setflags(write=False)
    return grid
