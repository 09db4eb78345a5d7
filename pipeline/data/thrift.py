"""Thrift's compact protocol, as far as Parquet's headers need it: structs as {field: value}, strictly checked."""

from typing import Any

_TRUE, _FALSE, _BYTE, _SHORT, _INT, _LONG, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_BITS = {_SHORT: 16, _INT: 32, _LONG: 64}
_DEEPEST = 12

INT, LONG, LIST, STRUCT = _INT, _LONG, _LIST, _STRUCT
Field = tuple[int, Any]
"""Of which kind a field is, and its value; of text and floating-point numbers the value is None."""


class Damaged(ValueError):
    """The bytes are no such struct."""


def struct(raw: bytes, at: int = 0, depth: int = 0) -> tuple[dict[int, Field], int]:
    """The struct at a place, and where it ends.

    Raises:
        Damaged: there is none: bytes are missing, a field stands twice, a number is out of range.
    """
    fields: dict[int, Field] = {}
    number = 0
    try:
        while head := raw[at]:
            at += 1
            if head >> 4:
                number += head >> 4
            else:
                number, at = _number(raw, at, 16)
            if number in fields:
                raise Damaged(f"field {number} stands twice")
            value, at = _value(raw, at, head & 15, depth)
            fields[number] = (head & 15, value)
    except IndexError:
        raise Damaged("it is cut off") from None
    return fields, at + 1


def get(fields: dict[int, Field], number: int, kind: int, default: Any = None) -> Any:
    """A field's value.

    Raises:
        Damaged: it is of another kind, or is not there and has no default.
    """
    field = fields.get(number)
    if field is None and default is not None:
        return default
    if field is None or field[0] != kind:
        raise Damaged(f"field {number} is missing or of another kind")
    return field[1]


def _value(raw: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _BITS:
        return _number(raw, at, _BITS[kind])
    if kind == _BINARY:
        size, at = _varint(raw, at, 32)
        return None, _inside(raw, at + size)
    if kind == _STRUCT and depth < _DEEPEST:
        return struct(raw, at, depth + 1)
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind in (_LIST, _SET) and depth < _DEEPEST:
        return _list(raw, at, depth)
    if kind == _BYTE:
        return raw[at], at + 1
    if kind == _DOUBLE:
        return None, _inside(raw, at + 8)
    raise Damaged("a field is of no known kind")


def _list(raw: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    kind, size = raw[at] & 15, raw[at] >> 4
    at += 1
    if size == 15:
        size, at = _varint(raw, at, 32)
    if size > len(raw) - at:  # each takes a byte or more
        raise Damaged("a list goes beyond the end")
    values = []
    for _ in range(size):
        value, at = _value(raw, at, _BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)
        values.append(value)
    return values, at


def _number(raw: bytes, at: int, bits: int) -> tuple[int, int]:
    part = raw[at]
    if part < 128:
        return (part >> 1) ^ -(part & 1), at + 1
    number, at = _varint(raw, at, bits)
    return (number >> 1) ^ -(number & 1), at


def _varint(raw: bytes, at: int, bits: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        part = raw[at]
        at += 1
        value |= (part & 127) << shift
        if part < 128:
            break
        shift += 7
        if shift > 63:
            raise Damaged("a number is too long")
    if value >> bits:
        raise Damaged("a number is out of range")
    return value, at


def _inside(raw: bytes, at: int) -> int:
    if at > len(raw):
        raise Damaged("it is cut off")
    return at
