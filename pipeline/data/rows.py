"""Rows of a shard: a Sequence and where it came from, as Parquet columns and back, with everything checked."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.augment import View
from pipeline.data.parquet_pages import Footer, footer_of, read_of
from pipeline.data.tokens import COORDINATE_RANGE, VOCABULARY_SIZE, Sequence
from pipeline.errors import UserError
from pipeline.storage.storage import Place, StorageError

SCHEMA = pa.schema(
    [
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("pair", pa.int16(), nullable=False),  # which test pair; -1: all pairs of the task
        pa.field("view", pa.int8(), nullable=False),
        pa.field("colours", pa.string(), nullable=False),  # ten digits: what each colour became
        *(
            pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), nullable=False)
            for name, kind in (
                ("tokens", pa.uint8()),
                ("rows", pa.uint8()),
                ("columns", pa.uint8()),
                ("labelled", pa.bool_()),
            )
        ),
        pa.field("length", pa.int32(), nullable=False),
    ]
)
_LIMITS = {"tokens": VOCABULARY_SIZE, "rows": COORDINATE_RANGE, "columns": COORDINATE_RANGE}
MOST_GROUP_BYTES = 2**30  # that a row group may take in memory; one of 16 rows of 512 tokens takes 700 KB
MEMORY_OF_TOKEN = 80  # bytes: Parquet's numbers of 4, three and a flag, each with its place in a list, and packed
MOST_LENGTHS_BYTES = 2**31  # that the lengths of a file's rows may take as they are read: of some 100 million rows
_MEND = "Delete the folder and prepare the data again with `tiny-onn prepare`."


@dataclass(frozen=True)
class Row:
    """A sequence and the view in which its task is seen."""

    sequence: Sequence
    view: View


def table_of(rows: Iterable[Row]) -> pa.Table:
    """The rows as columns of SCHEMA."""
    rows = list(rows)
    sequences = [row.sequence for row in rows]
    return pa.table(
        {
            "task_id": [s.task_id for s in sequences],
            "pair": [s.pair for s in sequences],
            "view": [row.view.dihedral for row in rows],
            "colours": ["".join(map(str, row.view.colours)) for row in rows],
            "tokens": [s.tokens for s in sequences],
            "rows": [s.rows for s in sequences],
            "columns": [s.columns for s in sequences],
            "labelled": [s.labelled for s in sequences],
            "length": [len(s) for s in sequences],
        },
        schema=SCHEMA,
    )


def read_footer(path: Place) -> Footer:
    """Where in a file its row groups are; errors as `read_group`."""
    with read_by_arrow(path, f"{path}: cannot be read"):
        return footer_of(path)


def read_group(path: Place, group: int, footer: Footer | None = None) -> list[Sequence]:
    """The sequences of one row group, its page checksums verified and every value in its range.

    `footer` is the file's own, so that it is not read again.

    Raises:
        UserError: names file, row group, what was found and what was expected.
        StorageError: the storage that it lies in is away.
    """
    where = f"{path}, row group {group}"
    footer = read_footer(path) if footer is None else footer
    with read_by_arrow(path, f"{where}: cannot be read"):
        schema = footer.schema
    if not schema.equals(SCHEMA):
        raise UserError(f"{where}: {_schema_difference(schema)}. {_MEND}")
    with read_by_arrow(path, f"{where}: cannot be read"):
        table = read_of(path, footer, [group], None, MOST_GROUP_BYTES).combine_chunks()
    lengths = table["length"].to_numpy()
    tokens, rows, columns, labelled = (
        _lists(table, name, lengths, where) for name in ("tokens", "rows", "columns", "labelled")
    )
    for (name, limit), lists in zip(_LIMITS.items(), (tokens, rows, columns), strict=True):
        worst = max((int(values.max()) for values in lists), default=0)
        if worst >= limit:
            raise UserError(f"{where}: `{name}` holds {worst}; expected less than {limit}. {_MEND}")
    ids, pairs = table["task_id"].to_pylist(), table["pair"].to_pylist()
    return [Sequence(*parts) for parts in zip(tokens, rows, columns, labelled, ids, pairs, strict=True)]


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


def check_file(path: Place, rows: int, row_groups: int, values: bool = True) -> None:
    """Columns, types and counts are as they must be; with `values`, which are read for that, so are all ids.

    The file's own statistics would be quicker, but damaged ones make Arrow end the process.

    Raises:
        UserError: names file, what was found and what was expected.
    """
    with read_by_arrow(path, f"{path}: is no readable Parquet file"):
        footer = footer_of(path)
        schema, found = footer.schema, (sum(footer.rows), len(footer.rows))
        worst = _largest(path, footer) if values and schema.equals(SCHEMA) else {}
    if not schema.equals(SCHEMA):
        raise UserError(f"{path}: {_schema_difference(schema)}. {_MEND}")
    if found != (rows, row_groups):
        raise UserError(
            f"{path}: found {found[0]} rows in {found[1]} row groups; the manifest says {rows} in {row_groups}. {_MEND}"
        )
    for name, value in worst.items():
        if not value < _LIMITS[name]:
            raise UserError(f"{path}: `{name}` holds {value}; expected less than {_LIMITS[name]}. {_MEND}")


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


def _largest(path: Place, footer: Footer) -> dict[str, int]:
    """The largest value of each limited column."""
    worst = dict.fromkeys(_LIMITS, 0)
    for group in range(len(footer.rows)):
        table = read_of(path, footer, [group], list(_LIMITS), MOST_GROUP_BYTES)
        for name in _LIMITS:
            worst[name] = max(worst[name], pc.max(pc.list_flatten(table[name])).as_py() or 0)
    return worst


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


def _schema_difference(found: pa.Schema) -> str:
    expected = {field.name: field for field in SCHEMA}
    missing = [name for name in expected if name not in found.names]
    if missing:
        return f"column {missing[0]!r} is missing; found {', '.join(found.names)}"
    for field in found:
        if field.name not in expected:
            return f"found an unknown column {field.name!r}; expected {', '.join(expected)}"
        if field != expected[field.name]:
            return f"column {field.name!r} is {_kind(field)}; expected {_kind(expected[field.name])}"
    return f"columns are {', '.join(found.names)}; expected {', '.join(expected)}"


def _kind(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' without nulls'}"
