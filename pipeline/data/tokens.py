"""ARC pairs as tokens with grid coordinates, and back, exactly.

A sequence is BOS and then, for each pair, INPUT, the input's cells, OUTPUT, the output's cells, END. Cells go row by
row, each row closed by ROW_END, so that the tokens alone tell a grid's shape.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.model_use import Layout
from pipeline.data.sequence import WHOLE, Format, Sequence
from pipeline.data.task import COLOURS, MAX_SIDE, Pair, Task

PAD = COLOURS
BOS = 11
INPUT = 12
OUTPUT = 13
ROW_END = 14
END = 15
VOCABULARY_SIZE = 16
COORDINATE_RANGE = MAX_SIDE + 2  # 0 for no cell, 1..30 for cells, 31 for the ROW_END of the widest row
FORMAT = Format(
    vocabulary=VOCABULARY_SIZE,
    coordinates={"rows": COORDINATE_RANGE, "columns": COORDINATE_RANGE},
    padding=PAD,
    extra={"view": pa.int8(), "colours": pa.string()},  # the symmetry, and ten digits: what each colour became
    pair_type=pa.int16(),
)

_NAMES = {PAD: "PAD", BOS: "BOS", INPUT: "INPUT", OUTPUT: "OUTPUT", ROW_END: "ROW_END", END: "END"}


class NotDecodable(ValueError):
    """Why tokens are no grid, or no sequence: what a model draws may be anything."""


def encode_task(task: Task, pair: int = WHOLE) -> Sequence:
    """A task as one sequence.

    `pair` WHOLE: all pairs, demonstrations first, every output labelled: for training. A number: the demonstrations
    and then this test pair, whose output alone is labelled: for evaluation. If the output is unknown, the sequence
    ends with the last OUTPUT: a prompt.
    """
    if pair == WHOLE:
        return encode_pairs(task.pairs, [True] * len(task.pairs), task.task_id)
    return encode_pairs([*task.train, task.test[pair]], [False] * len(task.train) + [True], task.task_id, pair)


def encode_pairs(pairs: Items[Pair], labelled: Items[bool], task_id: str = "", pair: int = WHOLE) -> Sequence:
    """`pairs` in order; where `labelled`, the output's cells, ROW_ENDs and END are to be predicted.

    Raises:
        ValueError: a pair before the last has no output.
    """
    parts = [_special(BOS)]
    for i, (one, label) in enumerate(zip(pairs, labelled, strict=True)):
        parts += [_special(INPUT), _grid_tokens(one.input, False), _special(OUTPUT)]
        if one.output is not None:
            parts += [_grid_tokens(one.output, label), _special(END, label)]
        elif i < len(pairs) - 1:
            raise ValueError(f"task {task_id}: pair {i} has no output, but another pair comes after it")
    joined = np.concatenate(parts, axis=1)
    tokens, rows, columns = joined[:3]
    return Sequence(tokens, (rows, columns), joined[3].astype(bool), task_id, pair)


def grid_layout(tokens: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Layout:
    """The grids of a sequence side by side, each cell in its own colour, an arrow between an input and its output."""
    tokens, rows, columns = (each.astype(np.int64) for each in (tokens, rows, columns))  # they may be unsigned
    grid = np.cumsum((tokens == INPUT) | (tokens == OUTPUT)) - 1  # of each token the number of its grid
    cells = (grid >= 0) & (tokens < COLOURS) & (rows > 0) & (columns > 0)
    drawn = np.unique(grid[cells])
    panels = np.where(cells, np.searchsorted(drawn, grid), -1)
    title = f"{len(drawn) // 2} pairs"
    arrows = tuple(range(0, len(drawn), 2))
    return Layout(panels, np.where(cells, rows - 1, 0), np.where(cells, columns - 1, 0), np.where(cells, tokens, -1),
                  arrows=arrows, title=title)  # fmt: skip


def encoded_length(pairs: Iterable[Pair], transposed: bool = False) -> int:
    """How many tokens `encode_pairs` makes; `transposed`: of the pairs with rows and columns exchanged."""
    axis = 1 if transposed else 0
    length = 1
    for pair in pairs:
        length += 2 + pair.input.size + pair.input.shape[axis]
        length += 0 if pair.output is None else 1 + pair.output.size + pair.output.shape[axis]
    return length


def advance(token: Any, row: Any, column: Any, next_token: Any) -> tuple[Any, Any]:
    """(row, column) of `next_token`, which follows `token` at (`row`, `column`): coordinates are causal.

    Ints, numpy arrays and torch tensors alike, elementwise. A cell or ROW_END comes right of a cell, at the start of
    the next row after a ROW_END, and at (1, 1) after any other token; other tokens are at (0, 0). A grid that a model
    draws too large stays at the last coordinate.
    """
    after_cell = 1 * (token < COLOURS)
    after_row = 1 * (token == ROW_END)
    drawn = 1 * ((next_token < COLOURS) | (next_token == ROW_END))
    fresh = 1 - after_cell - after_row
    next_row = drawn * (after_cell * row + after_row * (row + 1) + fresh)
    next_column = drawn * (after_cell * (column + 1) + after_row + fresh)
    last = COORDINATE_RANGE - 1
    return next_row - (next_row > last) * (next_row - last), next_column - (next_column > last) * (next_column - last)


def decode_grid(tokens: Iterable[int]) -> np.ndarray:
    """The grid int8 [H, W] of cells and ROW_ENDs; one END may close it.

    Raises:
        NotDecodable: the tokens are no grid; says at which token and why.
    """
    ids = [int(token) for token in tokens]
    if ids and ids[-1] == END:
        ids.pop()
    rows: list[list[int]] = [[]]
    for position, token in enumerate(ids):
        if token == ROW_END:
            if len(rows[-1]) != len(rows[0]) or not rows[-1]:
                raise NotDecodable(f"token {position} closes a row of {len(rows[-1])} cells; row 0 has {len(rows[0])}")
            rows.append([])
        elif 0 <= token < COLOURS:
            rows[-1].append(token)
        else:
            raise NotDecodable(f"token {position} is {_NAMES.get(token, token)}; expected a colour or ROW_END")
    if rows.pop():
        raise NotDecodable("the last row is not closed by ROW_END")
    if not rows:
        raise NotDecodable("no row at all")
    if max(len(rows), len(rows[0])) > MAX_SIDE:
        raise NotDecodable(f"{len(rows)}x{len(rows[0])} cells; at most {MAX_SIDE}x{MAX_SIDE} are possible")
    return np.array(rows, dtype=np.int8)


def decode_sequence(tokens: Iterable[int]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Every (input, output) of a sequence without padding; the last output is None if it ends with OUTPUT.

    Raises:
        NotDecodable: the tokens are no sequence; says which pair and why.
    """
    ids = [int(token) for token in tokens]
    if not ids or ids[0] != BOS:
        raise NotDecodable("a sequence begins with BOS")
    pairs: list[tuple[np.ndarray, np.ndarray | None]] = []
    start = 1
    while start < len(ids):
        name = f"pair {len(pairs)}"
        if ids[start] != INPUT:
            raise NotDecodable(f"{name} begins with {_NAMES.get(ids[start], ids[start])}; expected INPUT")
        try:
            middle = ids.index(OUTPUT, start)
            stop = ids.index(END, middle) + 1 if middle + 1 < len(ids) else len(ids)
        except ValueError as error:
            raise NotDecodable(f"{name} lacks its OUTPUT or its END") from error
        given, output = ids[start + 1 : middle], ids[middle + 1 : stop]
        if END in given:
            raise NotDecodable(f"{name} holds END before its OUTPUT")
        pairs.append((decode_grid(given), decode_grid(output) if output else None))
        start = stop
    return pairs


def prompt_length(tokens: np.ndarray) -> int:
    """How many tokens there are up to and with the last OUTPUT: what a model is given before it draws the answer.

    Raises:
        NotDecodable: there is no OUTPUT.
    """
    places = np.flatnonzero(np.asarray(tokens) == OUTPUT)
    if not len(places):
        raise NotDecodable("the sequence has no OUTPUT, so there is nothing to be predicted")
    return int(places[-1]) + 1


def _special(token: int, label: bool = False) -> np.ndarray:
    return np.array([[token], [0], [0], [label]], dtype=np.uint8)


def _grid_tokens(grid: np.ndarray, label: bool) -> np.ndarray:
    height, width = grid.shape
    tokens = np.full((height, width + 1), ROW_END, dtype=np.uint8)
    tokens[:, :width] = grid
    rows, columns = np.indices(tokens.shape) + 1
    return np.stack([tokens.ravel(), rows.ravel(), columns.ravel(), np.full(tokens.size, label)]).astype(np.uint8)
