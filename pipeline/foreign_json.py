"""The one reader of JSON that another process, machine or user may have written: bounded, and strict."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

MOST_BYTES = 64 * 2**20
MOST_MEMORY = 2**30  # bytes that the value of a text may take, as `memory_of` estimates them
DEEPEST = 32
_OF_OBJECT, _OF_LIST, _OF_VALUE, _OF_QUOTE = 240, 64, 16, 32  # bytes
_LARGEST_INTEGER = 2**63 - 1
_LONGEST_NUMBER = 400  # characters: what Python writes for a float is much shorter
_FEW_NUMBERS = 20  # digits; a longer integer is out of range, and slow to convert


class DamagedJson(UserError):
    """The bytes are not JSON of the allowed size and shape. The message names the file."""


def parse_json(data: bytes | bytearray | str, source: object, most_bytes: int = MOST_BYTES) -> Any:
    """The value in `data`, which came from `source` (a path or a storage's file, only named in errors).

    Refused besides malformed text: more than `most_bytes`, a value of more than MOST_MEMORY, more than DEEPEST levels,
    a key that stands twice in one object, NaN and infinities (also as 1e999), integers of more than 64 bits, and lone
    surrogates, which cannot be written again.

    Raises:
        DamagedJson: as above.
    """
    if len(data) > most_bytes:
        raise DamagedJson(f"{source}: has more than {most_bytes:,} bytes; expected a smaller JSON file")
    try:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8")
        text.encode("utf-8")
        if (memory := memory_of(text)) > MOST_MEMORY:
            raise ValueError(f"it would take {memory:,} bytes of memory; at most {MOST_MEMORY:,} are read")
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > DEEPEST:
            _check_depth(value)
        if "\\u" in text:
            _check_text(value)
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise DamagedJson(f"{source}: is not valid JSON ({_brief(error)})") from None
    return value


def memory_of(text: str) -> int:
    """About how many bytes the value of a JSON text takes: many times the text's own where it is made of little but
    brackets or short texts, ten times in ARC's grids."""
    signs = ((_OF_OBJECT, "{"), (_OF_LIST, "["), (_OF_VALUE, ","), (_OF_QUOTE, '"'))
    return len(text) + sum(bytes_each * text.count(sign) for bytes_each, sign in signs)


def parse_object(data: bytes | bytearray | str, source: object, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """As `parse_json`, of a JSON object.

    Raises:
        DamagedJson: as `parse_json`, or the value is no object.
    """
    value = parse_json(data, source, most_bytes)
    if not isinstance(value, dict):
        raise DamagedJson(f"{source}: holds {_kind(value)}; expected a JSON object")
    return value


def read_json_file(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The value in a file, of which no more than `most_bytes` are read.

    Raises:
        DamagedJson: as `parse_json`, or it is no regular file.
        OSError: the file cannot be read.
    """
    return parse_json(read_bounded(path, most_bytes), path, most_bytes)


def read_object_file(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """As `read_json_file`, of a JSON object."""
    return parse_object(read_bounded(path, most_bytes), path, most_bytes)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The bytes of a regular file, and one more than `most_bytes` at most; a pipe or device is never waited for.

    Raises:
        DamagedJson: it is no regular file.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise DamagedJson(f"{path}: is not a regular file. Remove it.")
    with path.open("rb") as file:
        return file.read(most_bytes + 1)


def integer(value: Any, least: int = 0, most: int = _LARGEST_INTEGER) -> int:
    """`value` where it is an integer from `least` to `most`; true and 1.0 are none.

    Raises:
        ValueError: it is not.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"found {_shown(value)}; expected a whole number from {least} to {most}")
    return value


def text(value: Any, most_characters: int = 10_000) -> str:
    """`value` where it is text of at most `most_characters`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or len(value) > most_characters:
        raise ValueError(f"found {_shown(value)}; expected text of at most {most_characters} characters")
    return value


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(items)
    if len(mapping) != len(items):
        seen: set[str] = set()
        twice = next(name for name, _ in items if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:60]!r} stands twice in one object")
    return mapping


def _float(digits: str) -> float:
    value = float(digits) if len(digits) <= _LONGEST_NUMBER else math.inf
    if not math.isfinite(value):
        raise ValueError(f"number {digits[:30]} is out of range")
    return value


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= _FEW_NUMBERS else _LARGEST_INTEGER + 1
    if abs(value) > _LARGEST_INTEGER:
        raise ValueError(f"number {digits[:30]} is out of range")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_int=_integer, parse_constant=_constant)


def _check_depth(value: Any) -> None:
    layer, depth = [value], 0
    while outer := [each for each in layer if isinstance(each, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        layer = [inner for each in outer for inner in _inside(each)]


def _check_text(value: Any) -> None:
    layer = [value]
    while layer:
        for each in layer:
            for part in (each, *each) if isinstance(each, dict) else (each,):
                if isinstance(part, str):
                    part.encode("utf-8")
        layer = [inner for outer in layer for inner in _inside(outer)]


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _brief(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested deeper than {DEEPEST} levels"
    words = "".join(each if each.isprintable() else "?" for each in str(error))
    return words.encode("utf-8", "replace").decode()[:200] or type(error).__name__


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _shown(value: Any) -> str:
    return _kind(value) if isinstance(value, list | dict) else repr(value)[:60]
