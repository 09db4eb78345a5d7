"""A value that JSON might have as a task. Nothing in it is trusted: numpy would take 1.5, true and ragged rows."""

import json
from pathlib import Path
from typing import Any

from pipeline.data.task import COLOURS, MAX_SIDE, Pair, Task, grid_of
from pipeline.escaping import shown


class RefusedTask(ValueError):
    """Why a file is no usable task; names file, task, pair, side and cell."""


def parse_task(value: Any, task_id: str, source: str, for_prediction: bool = False) -> Task:
    """`value`, as JSON gives it, as a Task. Other keys than `train`, `test`, `input` and `output` are not read.

    `for_prediction`, nor is the `output` of a test pair, whatever stands there; a task to learn from or to be judged by
    needs it.

    Raises:
        RefusedTask: names source, task, pair, side and cell.
    """
    where = f"{source}: task {task_id}"
    if not isinstance(value, dict):
        raise RefusedTask(f"{where}: found {_shown(value)}; expected an object with `train` and `test`")
    parts = []
    for part in ("train", "test"):
        pairs = value.get(part)
        if not isinstance(pairs, list) or not pairs:
            problem = f"`{part}` is {_shown(pairs)}" if part in value else f"there is no `{part}`"
            raise RefusedTask(f"{where}: {problem}; expected a list of at least one pair")
        asked = part == "test" and for_prediction
        parts.append(tuple(_pair(pair, f"{where}, {part} pair {i}", asked) for i, pair in enumerate(pairs)))
    train, test = parts
    return Task(task_id, train, test)


def printable(file: Path) -> str:
    """The file's name as text that can be written anywhere; what is not UTF-8 or steers a terminal is escaped."""
    return shown(str(file), keep="")


def _pair(value: Any, where: str, asked: bool) -> Pair:
    if not isinstance(value, dict):
        raise RefusedTask(f"{where}: found {_shown(value)}; expected an object with `input` and `output`")
    if "input" not in value:
        raise RefusedTask(f"{where}: there is no `input`")
    if asked:
        return Pair(_grid(value["input"], f"{where}, input"), None)
    if value.get("output") is None:
        raise RefusedTask(f"{where}: there is no `output`; such a task can be predicted, not learnt from or judged by")
    return Pair(_grid(value["input"], f"{where}, input"), _grid(value["output"], f"{where}, output"))


def _grid(value: Any, where: str) -> Any:
    if not isinstance(value, list) or not value:
        raise RefusedTask(f"{where}: found {_shown(value)}; expected a list of rows")
    for r, row in enumerate(value):
        if not isinstance(row, list) or not row:
            raise RefusedTask(f"{where}, row {r}: found {_shown(row)}; expected a list of cells")
        if len(row) != len(value[0]):
            raise RefusedTask(f"{where}, row {r}: {len(row)} cells, but row 0 has {len(value[0])}; the grid is ragged")
        for c, cell in enumerate(row):
            if type(cell) is not int or not 0 <= cell < COLOURS:  # isinstance would let true through
                raise RefusedTask(
                    f"{where}, cell (row {r}, column {c}): found {_shown(cell)}; expected a whole number from 0 to 9"
                )
    if len(value) > MAX_SIDE or len(value[0]) > MAX_SIDE:
        raise RefusedTask(f"{where}: {len(value)}x{len(value[0])} cells; at most {MAX_SIDE}x{MAX_SIDE} are possible")
    return grid_of(value)


def _shown(value: Any) -> str:
    if isinstance(value, list) and not value:
        return "an empty list"
    try:
        text = json.dumps(value, ensure_ascii=True)
    except RecursionError:
        return "lists or objects in one another without end"
    return text if len(text) <= 40 else f"{text[:37]}..."
