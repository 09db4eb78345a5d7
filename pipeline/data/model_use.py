"""The optional parts of a task that are used with a trained model: answers to a file, and drawings of its rows."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.colours import GRID_COLOURS
from pipeline.data.sequence import Sequence

LONGEST_LETTERS = 4  # characters in a cell
LARGEST_SIDE = 256  # of a panel, in cells
_MOST_CELLS = 2**20  # of a drawing: its panels side by side
_LINE = 32  # tokens


@dataclass(frozen=True)
class Answers:
    """A model's answers to a file: `values`, which JSON can hold, and `summary`, a sentence on them for the user."""

    values: Any
    summary: str


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the n tokens of a row stand in a drawing: each is a cell of a panel, and panels stand side by side.

    Attributes:
        panels: each token's panel, from 0; -1 for a token that is not drawn. Integers [n].
        rows, columns: its cell in the panel, from 0, below 256. Integers [n].
        colours: its own colour, 0 to 9 (`pipeline.colours.GRID_COLOURS`), -1 for white. Integers [n]; None: all white.
        letters: up to four characters that are written in each cell, n of them; None: nothing is written.
        arrows: the panels that an arrow follows.
        title: what is drawn, as in "3 pairs".
    """

    panels: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    colours: np.ndarray | None = None
    letters: tuple[str, ...] | None = None
    arrows: tuple[int, ...] = ()
    title: str = ""

    def problem(self, n: int) -> str | None:
        """Why it cannot be drawn for a row of n tokens, as a sentence without its subject; None where it can."""
        for name in ("panels", "rows", "columns", "colours"):
            values = getattr(self, name)
            if name == "colours" and values is None:
                continue
            low, high = {"panels": (-1, n), "colours": (-1, len(GRID_COLOURS))}.get(name, (0, LARGEST_SIDE))
            array = np.asarray(values)
            if array.dtype.kind not in "iu" or array.shape != (n,):
                return f"has {name} as {array.dtype} {list(array.shape)}; expected whole numbers [{n}]"
            if n and not low <= array.min() <= array.max() < high:
                return f"has {name} from {array.min()} to {array.max()}; expected {low} to {high - 1}"
        shown = np.asarray(self.panels) >= 0
        if not shown.any():
            return "draws none of the tokens; expected a panel from 0 for at least one"
        letters = self.letters
        if letters is not None and (
            len(letters) != n or not all(isinstance(one, str) and len(one) <= LONGEST_LETTERS for one in letters)
        ):
            return f"has letters={letters!r:.80}; expected {n} texts of at most {LONGEST_LETTERS} characters"
        panels = np.unique(np.asarray(self.panels)[shown])
        width = sum(int(np.asarray(self.columns)[np.asarray(self.panels) == panel].max()) + 1 for panel in panels)
        if width * (int(np.asarray(self.rows)[shown].max()) + 1) > _MOST_CELLS:
            return f"is {width} cells wide; expected at most {_MOST_CELLS:,} cells in all"
        return None


def in_lines(row: Sequence, width: int = _LINE, letters: tuple[str, ...] | None = None) -> Layout:
    """One panel, the tokens in reading order, `width` in a line; the first lines where they do not all fit."""
    places = np.arange(len(row))
    lines = places // width
    return Layout(
        np.where(lines < LARGEST_SIDE, 0, -1), lines.clip(max=LARGEST_SIDE - 1), places % width, None, letters
    )


@dataclass(frozen=True)
class RoutingMaps:
    """How rows are drawn in routing maps, where each cell has the colour of the expert that dominates at its token.

    Attributes:
        lay_out: (row) -> Layout.
        row_of: (trained model, given, ...) -> a row; `pipeline.api.routing_map` calls it and draws the row's routing.
            Without it, `routing_map` takes a `Sequence` alone.
    """

    lay_out: Callable[[Sequence], Layout] = in_lines
    row_of: Callable[..., Sequence] | None = None


Answering = Callable[[Any, Path], Answers]
"""(`TrainedModel`, path of a file) -> the model's answers to what is in the file."""
