"""Parquet within bounds: what row groups take in memory is read from their pages' headers before Arrow unpacks them.

A few hundred bytes may stand for billions of values: runs of one value, a dictionary whose long entry is repeated, a
compressed page. The sizes in the footer do not tell, and may be wrong; Arrow goes by the headers of the pages, and so
does this module. Arrow then gets the bytes that were looked at and no others.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.thrift import INT, LIST, LONG, STRUCT, Damaged, get, struct
from pipeline.storage.storage import Place, Storage, StorageError, in_a_line

Read = Callable[[int, int], bytes]
"""The bytes of a file from a place on, so many."""

_LARGEST_FOOTER = 16 * 2**20  # bytes: of a file of some 10,000 row groups
_MOST_IN_FOOTER = 1_000_000  # strings, and parts of lists, in a file's description of itself
_TAIL = 2**16  # read at once: most footers are smaller
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_LEVELS, _OFFSET = 4, 8  # bytes that Arrow keeps of a value's place in lists: of each value, and of each list around it
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_2 = 0, 2, 3
_OF_KIND = {_DATA_PAGE: (5, 2), _DICTIONARY_PAGE: (7, 2), _DATA_PAGE_2: (8, 4)}  # which fields tell of such a page
_OF_DELTAS = {5, 6, 7}  # encodings
_DELTA_BYTE_ARRAY = 7  # in which texts share beginnings


class TooMuch(ValueError):
    """The pages would take too much memory when they are unpacked."""


@dataclass(frozen=True)
class _Chunk:
    """A column of a row group: its bytes begin at `start`."""

    start: int
    size: int
    values: int
    encodings: tuple[int, ...]


@dataclass(frozen=True)
class Footer:
    """A file's description of itself: as Arrow reads it and, of each row group, its rows and its columns' chunks.

    Arrow's own view of a column is not asked for: over a damaged one pyarrow ends the process.
    """

    arrow: pq.FileMetaData
    rows: tuple[int, ...]
    chunks: tuple[tuple[_Chunk, ...], ...]

    @property
    def schema(self) -> pa.Schema:
        """The columns as Arrow has them."""
        return self.arrow.schema.to_arrow_schema()


@dataclass(frozen=True)
class _Page:
    kind: int
    unpacked: int
    packed: int
    values: int
    encoding: int


def read_bounded(
    read: Read,
    footer: Footer,
    groups: Iterable[int],
    columns: Iterable[str] | None,
    most_bytes: int,
    threads: bool = True,
) -> pa.Table:
    """The row groups `groups` of a file as one table, the checksums of their pages verified.

    Args:
        read: gives the file's bytes.
        footer: the file's own.
        columns: of the first level, by name; None: all.
        most_bytes: that the table, or the bytes that it is made of, may take.

    Raises:
        TooMuch: they would take more.
        Damaged: a page's header is.
        Exception: whatever Arrow raises over damaged bytes.
    """
    groups, names = list(groups), None if columns is None else list(columns)
    schema = footer.arrow.schema
    chosen = [i for i in range(footer.arrow.num_columns) if names is None or _top(schema.column(i).path) in names]
    texts = {i: schema.column(i).path for i in chosen if _has_distinct_texts(footer, groups, i)}
    parts, left = _Parts(), most_bytes
    for start, size, chunks in _together(footer, groups, chosen):
        left -= size
        if left < 0:
            raise TooMuch(f"it has more than {most_bytes:,} bytes; expected smaller row groups")
        raw = read(start, size)
        if len(raw) != size:
            raise Damaged(f"it ends before byte {start + size:,}, where a column should end")
        parts.add(start, raw)
        for group, column in chunks:
            chunk = footer.chunks[group][column]
            pages = list(_pages(raw[chunk.start - start : chunk.start - start + chunk.size]))
            left -= (size := _unpacked(pages, footer, group, column, once=column in texts))
            if left < 0:
                raise TooMuch(
                    f"column {schema.column(column).path} takes {size:,} bytes when it is unpacked; at most "
                    f"{most_bytes:,} are read in all"
                )
    with pq.ParquetFile(
        pa.PythonFile(parts, mode="r"),
        metadata=footer.arrow,
        page_checksum_verification=True,
        read_dictionary=list(texts.values()),
        pre_buffer=False,  # it would ask for what lies between the parts too
    ) as file:
        table = file.read_row_groups(groups, columns=names, use_threads=threads)
    return _with_texts(table, left)


def read_of(
    place: Place, footer: Footer, groups: Iterable[int], columns: Iterable[str] | None, most_bytes: int
) -> pa.Table:
    """As `read_bounded`, of a file here or in a storage."""
    with _opened(place) as (read, _):
        return read_bounded(read, footer, groups, columns, most_bytes)


def footer_of(place: Place) -> Footer:
    """A file's description of itself; errors as `footer_in`."""
    with _opened(place) as (read, size):
        return footer_in(read, size)


def footer_in(read: Read, size: int) -> Footer:
    """The description that a file of `size` bytes ends with.

    Raises:
        TooMuch: it is larger than 16 MiB.
        Damaged: it is.
        Exception: whatever Arrow raises.
    """
    start = max(0, size - _TAIL)
    tail = read(start, size - start)
    length = int.from_bytes(tail[-8:-4], "little")
    if length > _LARGEST_FOOTER:
        raise TooMuch(f"its footer has {length:,} bytes; at most {_LARGEST_FOOTER:,} are read")
    if 0 <= (begin := size - 8 - length) < start:
        start, tail = begin, read(begin, size - begin)
    parts = _Parts(size)
    parts.add(start, tail)
    limits = {f"thrift_{what}_size_limit": _MOST_IN_FOOTER for what in ("string", "container")}
    with pq.ParquetFile(pa.PythonFile(parts, mode="r"), pre_buffer=False, **limits) as file:
        arrow = file.metadata
    fields, _ = struct(tail[-8 - length : -8])
    rows, chunks = [], []
    for group in get(fields, 4, LIST):
        rows.append(get(group, 3, LONG))
        chunks.append(tuple(_chunk(column) for column in get(group, 1, LIST)))
    if any(len(each) != arrow.num_columns for each in chunks) or len(chunks) != arrow.num_row_groups:
        raise Damaged("a row group has not all columns")
    return Footer(arrow, tuple(rows), tuple(chunks))


@contextmanager
def _opened(place: Place) -> Iterator[tuple[Read, int]]:
    """How a file is read, and its bytes."""
    if isinstance(place, Path):
        with place.open("rb") as file:

            def read(start: int, size: int) -> bytes:
                file.seek(start)
                return file.read(size)

            yield read, file.seek(0, 2)
        return
    with _of_storage(place):
        stored = place.filesystem.open_input_file(place.path)
    with stored:

        def read_stored(start: int, size: int) -> bytes:
            with _of_storage(place):
                return bytes(stored.read_at(size, start))

        with _of_storage(place):
            size = stored.size()
        yield read_stored, size


@contextmanager
def _of_storage(place: Storage) -> Iterator[None]:
    """What a storage raises, told from what Arrow raises over the bytes."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{place}: {in_a_line(error, place.uri)}") from error


class _Parts:
    """A file of which some parts are there, for Arrow to read; a read goes no further than the end of one."""

    closed = False

    def __init__(self, size: int = 0) -> None:
        self._parts: list[tuple[int, bytes]] = []
        self._at, self._size = 0, size

    def add(self, start: int, raw: bytes) -> None:
        self._parts.append((start, raw))
        self._size = max(self._size, start + len(raw))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = 0) -> int:
        self._at = place + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        for start, raw in self._parts:
            if start <= self._at < start + len(raw):
                part = raw[self._at - start :][: None if size < 0 else size]
                self._at += len(part)
                return part
        return b""

    def close(self) -> None:
        pass


def _chunk(column: Any) -> _Chunk:
    """As Parquet's ColumnChunk says it."""
    about = get(column, 3, STRUCT)
    start, dictionary = get(about, 9, LONG), get(about, 11, LONG, default=0)
    if 0 < dictionary < start:
        start = dictionary
    size, values = get(about, 7, LONG), get(about, 5, LONG)
    if min(start, size, values) < 0:
        raise Damaged("a column begins before the file, or has less than nothing")
    return _Chunk(start, size, values, tuple(get(about, 2, LIST)))


def _top(path: str) -> str:
    return path.partition(".")[0]


def _has_distinct_texts(footer: Footer, groups: list[int], column: int) -> bool:
    """Whether the texts of a column may be read as a dictionary and places in it, each text once."""
    known = footer.arrow.schema.column(column)
    if known.physical_type != "BYTE_ARRAY" or known.max_repetition_level or "." in known.path:
        return False
    return not any(set(footer.chunks[group][column].encodings) & _OF_DELTAS for group in groups)


def _together(
    footer: Footer, groups: list[int], columns: list[int]
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """(start, size, [(group, column)]) of column chunks, those that lie side by side taken together."""
    here: list[tuple[int, int]] = []
    start = end = 0
    for group, column in sorted(product(groups, columns), key=lambda each: footer.chunks[each[0]][each[1]].start):
        chunk = footer.chunks[group][column]
        if here and chunk.start != end:
            yield start, end - start, here
            here = []
        start = start if here else chunk.start
        here.append((group, column))
        end = chunk.start + chunk.size
    if here:
        yield start, end - start, here


def _unpacked(pages: list[_Page], footer: Footer, group: int, column: int, once: bool) -> int:
    """The bytes that a column chunk takes in Arrow's memory, at most.

    Args:
        once: its texts are read as a dictionary, each once; what they come to is measured later.
    """
    known, rows = footer.arrow.schema.column(column), footer.rows[group]
    values = sum(page.values for page in pages if page.kind != _DICTIONARY_PAGE)
    declared = footer.chunks[group][column].values
    if values != declared or rows > values:
        raise Damaged(f"column {known.path} has {values:,} values; the footer says {declared:,}, in {rows:,} rows")
    text = known.physical_type == "BYTE_ARRAY"
    width = 0 if text else _WIDTHS.get(known.physical_type, known.length)
    around = _LEVELS + _OFFSET * (known.max_repetition_level + text) + known.max_definition_level
    repeated = [
        page.unpacked
        for page in pages
        if page.encoding == _DELTA_BYTE_ARRAY or (page.kind == _DICTIONARY_PAGE and not once)
    ]
    most_of_a_text = max(repeated, default=0) if text else 0
    return sum(page.unpacked for page in pages) + values * (width + around + most_of_a_text)


def _with_texts(table: pa.Table, left: int) -> pa.Table:
    """The table with the texts of dictionaries in their places."""
    for place, field in enumerate(table.schema):
        if not pa.types.is_dictionary(field.type):
            continue
        sizes = [
            pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0
            for chunk in table.column(place).chunks
        ]
        if (left := left - sum(sizes)) < 0:
            raise TooMuch(f"column {field.name} has texts of {sum(sizes):,} bytes in all; expected less")
        plain = field.with_type(field.type.value_type)
        table = table.set_column(place, plain, table.column(place).cast(plain.type))
    return table


def _pages(raw: bytes) -> Iterator[_Page]:
    """The headers of a column chunk's pages."""
    at = 0
    while at < len(raw):
        header, at = struct(raw, at)
        kind = get(header, 1, INT)
        if kind not in _OF_KIND:
            raise Damaged("a page is of no kind that holds values")
        place, encoding = _OF_KIND[kind]
        of_kind = get(header, place, STRUCT)
        page = _Page(kind, get(header, 2, INT), get(header, 3, INT), get(of_kind, 1, INT), get(of_kind, encoding, INT))
        if min(page.unpacked, page.packed, page.values) < 0:
            raise Damaged("a page has less than nothing")
        at += page.packed
        if at > len(raw):
            raise Damaged(f"a page of {page.packed:,} bytes goes beyond its column")
        yield page
