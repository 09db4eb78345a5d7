"""What an ARC task is."""

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
    """Demonstrations (`train`) and the pairs to be solved (`test`); at least one of each.

    Tasks of one `family`, where it is not empty, are sampled from the same pairs and have one rule.
    """

    task_id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    family: str = ""

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Demonstrations first, then the pairs to be solved."""
        return self.train + self.test


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
