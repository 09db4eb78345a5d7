"""Parquet with a task a row (`train`, `test`) or a pair a row (`input`, `output`), as values that JSON might have."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.arc_json import RefusedTask
from pipeline.data.sources.packed import LARGEST_FILE
from pipeline.foreign_json import DamagedJson, parse_json

_MOST_ROWS = 1_000_000
_COLUMNS = ("train", "test", "input", "output")
_NAMES = ("id", "task_id", "name")
_LARGEST_FOOTER = 1_000_000  # strings, and parts of lists, in the file's description of itself


def is_parquet(head: bytes) -> bool:
    """Whether bytes begin as Parquet's do."""
    return head[:4] == b"PAR1"


def read_parquet(data: bytes, place: str) -> list[dict[str, Any]]:
    """Its rows, with those of their columns that tasks or pairs are made of; texts of JSON are read.

    Raises:
        RefusedTask: it is damaged, too large, or has no such columns.
    """
    try:
        with pq.ParquetFile(
            pa.BufferReader(data),
            page_checksum_verification=True,
            thrift_string_size_limit=_LARGEST_FOOTER,
            thrift_container_size_limit=_LARGEST_FOOTER,
        ) as file:
            names = file.schema_arrow.names
            wanted = [name for name in (*_NAMES, *_COLUMNS) if name in names]
            rows, groups = file.metadata.num_rows, range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            pairs, tasks = {"input", "output"} <= set(wanted), {"train", "test"} <= set(wanted)
            if rows <= _MOST_ROWS and size <= LARGEST_FILE and (pairs or tasks):
                found = file.read(columns=wanted, use_threads=False).to_pylist()
    except Exception as error:  # Arrow raises whatever damaged bytes lead it to
        raise RefusedTask(f"{place}: cannot be read ({' '.join(str(error).split())}); expected Parquet") from error
    if not (pairs or tasks):
        shown = ", ".join(names[:10])
        raise RefusedTask(f"{place}: has the columns {shown}; expected `train` and `test`, or `input` and `output`")
    if rows > _MOST_ROWS or size > LARGEST_FILE:
        raise RefusedTask(f"{place}: {rows} rows of {size} bytes; at most {_MOST_ROWS} and {LARGEST_FILE} are read")
    return [{name: _plain(value) for name, value in row.items()} for row in found]


def _plain(value: Any) -> Any:
    """A column may hold JSON as text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return parse_json(value, "a column")
        except DamagedJson:
            return value
    return value
