"""JSON, and JSON lines, as values. Nothing is guessed: a key that stands twice in an object is an error."""

from typing import Any

from pipeline.data.arc_json import RefusedTask
from pipeline.foreign_json import DamagedJson, parse_json


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
        return parse_json(text, place, len(data))
    except DamagedJson as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or not _is_value(lines[0][1]):
            raise RefusedTask(str(error).replace("is not valid", "not valid", 1)) from error
    values = []
    for number, line in lines:
        try:
            values.append(parse_json(line, f"{place}: line {number}", len(data)))
        except DamagedJson as error:
            raise RefusedTask(str(error).replace(": is not valid", " is not valid", 1)) from error
    return values


def _is_value(line: str) -> bool:
    try:
        return isinstance(parse_json(line, ""), dict | list)
    except DamagedJson:
        return False
