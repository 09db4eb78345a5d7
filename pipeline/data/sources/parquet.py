"""Parquet with a task a row (`train`, `test`) or a pair a row (`input`, `output`), as values that JSON might have."""

from typing import Any

import pyarrow as pa

from pipeline.data.arc_json import RefusedTask
from pipeline.data.parquet_pages import TooMuch, footer_in, read_bounded
from pipeline.foreign_json import MOST_MEMORY, DamagedJson, memory_of, parse_json

_MOST_ROWS = 1_000_000
_COLUMNS = ("train", "test", "input", "output")
_NAMES = ("id", "task_id", "name")
_REFERENCE, _NUMBER, _TEXT, _LIST, _DICT = 8, 8, 60, 64, 240  # bytes that each takes as Python's


def is_parquet(head: bytes) -> bool:
    """Whether bytes begin as Parquet's do."""
    return head[:4] == b"PAR1"


def read_parquet(data: bytes, place: str) -> tuple[list[dict[str, Any]], int]:
    """Its rows, with those of their columns that tasks or pairs are made of, texts of JSON read; and about how many
    bytes of memory they take.

    Raises:
        RefusedTask: it is damaged, too large, or has no such columns.
    """

    def read(start: int, size: int) -> bytes:
        return data[start : start + size]

    try:
        footer = footer_in(read, len(data))
        names = footer.schema.names
        wanted = [name for name in (*_NAMES, *_COLUMNS) if name in names]
        rows = sum(footer.rows)
        pairs, tasks = {"input", "output"} <= set(wanted), {"train", "test"} <= set(wanted)
        if rows <= _MOST_ROWS and (pairs or tasks):
            table = read_bounded(read, footer, range(len(footer.rows)), wanted, MOST_MEMORY, threads=False)
            if (memory := sum(map(_as_python, table.columns))) > MOST_MEMORY:
                raise TooMuch(f"its rows take {memory:,} bytes of memory; at most {MOST_MEMORY:,} are read")
            records = table.to_pylist()
    except Exception as error:  # Arrow raises whatever damaged bytes lead it to
        raise RefusedTask(f"{place}: cannot be read ({' '.join(str(error).split())}); expected Parquet") from error
    if not (pairs or tasks):
        shown = ", ".join(names[:10])
        raise RefusedTask(f"{place}: has the columns {shown}; expected `train` and `test`, or `input` and `output`")
    if rows > _MOST_ROWS:
        raise RefusedTask(f"{place}: has {rows} rows; at most {_MOST_ROWS} are read")
    return [{name: _plain(value) for name, value in row.items()} for row in records], memory


def _as_python(values: Any) -> int:
    """The bytes that an Arrow array takes as Python's lists, dicts, numbers and texts, more or less."""
    if isinstance(values, pa.ChunkedArray):
        return sum(map(_as_python, values.chunks))
    kind, size = values.type, _REFERENCE * len(values)
    if pa.types.is_struct(kind):
        return size + _DICT * len(values) + sum(map(_as_python, values.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return size + _LIST * len(values) + _as_python(values.flatten())
    if pa.types.is_map(kind):
        return size + _LIST * len(values) + _as_python(values.keys) + _as_python(values.items)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return size + _TEXT * len(values) + _of_texts(values)
    return size + _NUMBER * len(values)


def _of_texts(values: Any) -> int:
    """The characters of texts, and what those that are JSON come to when they are read."""
    texts = (text for text in values.to_pylist() if isinstance(text, str))
    return int(values.nbytes) + sum(memory_of(text) for text in texts if text[:1] in ("[", "{"))


def _plain(value: Any) -> Any:
    """A column may hold JSON as text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return parse_json(value, "a column")
        except DamagedJson:
            return value
    return value
