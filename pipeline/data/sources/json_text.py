"""JSON, and JSON lines, as values. Nothing is guessed: a key that stands twice in an object is an error."""

from typing import Any

from pipeline.data.arc_json import RefusedTask
from pipeline.foreign_json import MOST_MEMORY, DamagedJson, memory_of, parse_json


def read_json(data: bytes, place: str) -> tuple[Any, int]:
    """The value of a JSON text, or the list of values of JSON lines, and about how many bytes of memory it takes. A
    byte-order mark may come first.

    Raises:
        RefusedTask: it is neither, or would take more than MOST_MEMORY.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedTask(f"{place}: not valid JSON ({error})") from error
    if (memory := memory_of(text)) > MOST_MEMORY:
        raise RefusedTask(f"{place}: would take {memory:,} bytes of memory; at most {MOST_MEMORY:,} are read")
    try:
        return parse_json(text, place, len(data)), memory
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
    return values, memory


def _is_value(line: str) -> bool:
    try:
        return isinstance(parse_json(line, ""), dict | list)
    except DamagedJson:
        return False
