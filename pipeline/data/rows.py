"""Rows of a shard as Parquet columns and back, with everything checked against the task's format."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.parquet_pages import Footer, footer_of, read_of
from pipeline.data.sequence import IGNORED, Format, Sequence
from pipeline.errors import UserError
from pipeline.storage.storage import Place, StorageError

MOST_GROUP_BYTES = 2**30  # that a row group may take in memory; one of 16 rows of 512 tokens takes 700 KB
MEMORY_OF_TOKEN = 80  # bytes: Parquet's numbers of 4, three and a flag, each with its place in a list, and packed
MOST_LENGTHS_BYTES = 2**31  # that the lengths of a file's rows may take as they are read: of some 100 million rows
_MEND = "Delete the folder and prepare the data again with `tiny-onn prepare`."


def table_of(rows: Iterable[Sequence], form: Format) -> pa.Table:
    """The rows as columns of the format's schema."""
    rows = list(rows)
    lists = {name: [row.coordinates[place] for row in rows] for place, name in enumerate(form.coordinates)}
    lists[form.target] = [row.labelled if row.labels is None else row.labels for row in rows]
    return pa.table(
        {
            "task_id": [row.task_id for row in rows],
            "pair": [row.pair for row in rows],
            **{name: [row.extra[name] for row in rows] for name in form.extra},
            "tokens": [row.tokens for row in rows],
            **lists,
            "length": [len(row) for row in rows],
        },
        schema=form.schema,
    )


def read_footer(path: Place) -> Footer:
    """Where in a file its row groups are; errors as `read_group`."""
    with read_by_arrow(path, f"{path}: cannot be read"):
        return footer_of(path)


def read_group(path: Place, group: int, form: Format, footer: Footer | None = None) -> list[Sequence]:
    """The sequences of one row group, its page checksums verified and every value in its range.

    `footer` is the file's own, so that it is not read again. The format's extra columns are not returned.

    Raises:
        UserError: names file, row group, what was found and what was expected.
        StorageError: the storage that it lies in is away.
    """
    where = f"{path}, row group {group}"
    footer = read_footer(path) if footer is None else footer
    with read_by_arrow(path, f"{where}: cannot be read"):
        schema = footer.schema
    if not schema.equals(form.schema):
        raise UserError(f"{where}: {_schema_difference(schema, form.schema)}. {_MEND}")
    with read_by_arrow(path, f"{where}: cannot be read"):
        table = read_of(path, footer, [group], None, MOST_GROUP_BYTES).combine_chunks()
    lengths = table["length"].to_numpy()
    lists = {name: _lists(table, name, lengths, where) for name in ("tokens", *form.coordinates, form.target)}
    for name, limit in form.limits.items():
        ranges = [(int(values.min()), int(values.max())) for values in lists[name]]
        _check_values(
            name, min((a for a, _ in ranges), default=0), max((b for _, b in ranges), default=0), limit, where
        )
    ids, pairs = table["task_id"].to_pylist(), table["pair"].to_pylist()
    no_mask, targets = np.zeros(0, dtype=np.bool_), lists[form.target]
    return [
        Sequence(
            tokens=tokens,
            coordinates=tuple(lists[name][place] for name in form.coordinates),
            labelled=targets[place] if form.classes is None else no_mask,
            task_id=ids[place],
            pair=pairs[place],
            labels=None if form.classes is None else targets[place],
        )
        for place, tokens in enumerate(lists["tokens"])
    ]


def read_lengths(path: Place) -> list[np.ndarray]:
    """For each row group, its rows' lengths (int32); no other column is read.

    Raises:
        UserError: the file is damaged.
    """
    with read_by_arrow(path, f"{path}: lengths cannot be read"):
        footer = footer_of(path)
        sizes = footer.rows
        lengths = read_of(path, footer, range(len(sizes)), ["length"], MOST_LENGTHS_BYTES)["length"].to_numpy()
    return np.split(lengths, np.cumsum(sizes)[:-1])


def read_ids(path: Place) -> list[list[str]]:
    """For each row group, its rows' `task_id`; no other column is read.

    Raises:
        UserError: the file is damaged.
        StorageError: the storage that it lies in is away.
    """
    with read_by_arrow(path, f"{path}: task_id cannot be read"):
        footer = footer_of(path)
        groups = range(len(footer.rows))
        return [read_of(path, footer, [g], ["task_id"], MOST_GROUP_BYTES)["task_id"].to_pylist() for g in groups]


def check_file(path: Place, rows: int, row_groups: int, form: Format, values: bool = True) -> None:
    """Columns, types and size are as they must be; with `values`, which are read for that, so are all ids.

    The file's own statistics would be quicker, but damaged ones make Arrow end the process.

    Raises:
        UserError: names file, what was found and what was expected.
    """
    with read_by_arrow(path, f"{path}: is no readable Parquet file"):
        footer = footer_of(path)
        schema, size = footer.schema, (sum(footer.rows), len(footer.rows))
        ranges = _ranges(path, footer, form) if values and schema.equals(form.schema) else {}
    if not schema.equals(form.schema):
        raise UserError(f"{path}: {_schema_difference(schema, form.schema)}. {_MEND}")
    if size != (rows, row_groups):
        raise UserError(
            f"{path}: found {size[0]} rows in {size[1]} row groups; the manifest says {rows} in {row_groups}. {_MEND}"
        )
    for name, (least, most) in ranges.items():
        _check_values(name, least, most, form.limits[name], path)


@contextmanager
def read_by_arrow(path: Place, what: str) -> Iterator[None]:
    """Whatever Arrow raises over foreign bytes, UnicodeDecodeError for one, as a UserError. Only Arrow goes in here.

    Raises:
        UserError: the file is damaged.
        StorageError: the storage that it lies in is away.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({' '.join(str(error).split())}); the file is damaged. {_MEND}") from error


def _ranges(path: Place, footer: Footer, form: Format) -> dict[str, tuple[int, int]]:
    """The smallest and the largest value of each limited column."""
    ranges = dict.fromkeys(form.limits, (0, 0))
    for group in range(len(footer.rows)):
        table = read_of(path, footer, [group], list(form.limits), MOST_GROUP_BYTES)
        for name, (least, most) in ranges.items():
            there = pc.min_max(pc.list_flatten(table[name])).as_py()
            ranges[name] = min(least, there["min"] or 0), max(most, there["max"] or 0)
    return ranges


def _check_values(name: str, least: int, most: int, limit: int, where: object) -> None:
    if most >= limit:
        raise UserError(f"{where}: `{name}` holds {most}; expected less than {limit}. {_MEND}")
    if least < 0 and (name != "labels" or least != IGNORED):
        raise UserError(f"{where}: `{name}` holds {least}; expected no number below 0. {_MEND}")


def _lists(table: pa.Table, name: str, lengths: np.ndarray, where: str) -> list[np.ndarray]:
    chunks = table[name].chunks
    if not chunks:
        return []
    (column,) = chunks
    offsets = column.offsets.to_numpy()
    if not np.array_equal(np.diff(offsets), lengths) or (lengths < 1).any():
        raise UserError(f"{where}: `{name}` is not as long as `length` says. {_MEND}")
    values = column.values.to_numpy(zero_copy_only=False)
    return [values[start:stop] for start, stop in pairwise(offsets)]


def _schema_difference(schema: pa.Schema, wanted: pa.Schema) -> str:
    expected = {field.name: field for field in wanted}
    missing = [name for name in expected if name not in schema.names]
    if missing:
        return f"column {missing[0]!r} is missing; found {', '.join(schema.names)}"
    for field in schema:
        if field.name not in expected:
            return f"found an unknown column {field.name!r}; expected {', '.join(expected)}"
        if field != expected[field.name]:
            return f"column {field.name!r} is {_kind(field)}; expected {_kind(expected[field.name])}"
    return f"columns are {', '.join(schema.names)}; expected {', '.join(expected)}"


def _kind(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' without nulls'}"
