"""JSON, and JSON lines, as values. Nothing is guessed: a key that stands twice in an object is an error."""

import json
from typing import Any

from pipeline.data.arc_json import RefusedTask, without_repeats


def read_json(data: bytes, place: str) -> Any:
    """The value of a JSON text, or the list of values of JSON lines; a byte-order mark may come first.

    Raises:
        RefusedTask: it is neither.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedTask(f"{place}: not valid JSON ({error})") from error
    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or isinstance(error, RecursionError) or not _is_value(lines[0][1]):
            raise RefusedTask(f"{place}: not valid JSON ({error})") from error
    values = []
    for number, line in lines:
        try:
            values.append(json.loads(line, object_pairs_hook=without_repeats))
        except (ValueError, RecursionError) as error:
            raise RefusedTask(f"{place}: line {number} is not valid JSON ({error})") from error
    return values


def _is_value(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False
