"""Parquet files of a few hundred bytes that stand for much more, and what an honest file comes to."""

import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import rows
from pipeline.data.arc_json import RefusedTask
from pipeline.data.parquet_pages import TooMuch, footer_in, read_bounded
from pipeline.data.rows import check_file, read_group, read_lengths
from pipeline.data.sources import parquet
from pipeline.data.sources.parquet import read_parquet
from pipeline.data.thrift import Damaged
from pipeline.data.tokens import FORMAT
from pipeline.errors import UserError

MIB = 2**20
_POOLS: list[pa.MemoryPool] = []  # kept: what was allocated in one may outlive the test


@pytest.fixture
def allocated() -> Iterator[pa.MemoryPool]:
    """What Arrow allocates during the test."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    _POOLS.append(pool)
    pa.set_memory_pool(pool)
    yield pool
    pa.set_memory_pool(before)


def written(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{"compression": "zstd", "write_page_checksum": True, **options})
    return sink.getvalue().to_pybytes()


def read(data: bytes, most: int, columns: list[str] | None = None) -> pa.Table:
    footer = footer_in(part_of(data), len(data))
    return read_bounded(part_of(data), footer, range(len(footer.rows)), columns, most)


def part_of(data: bytes) -> Callable[[int, int], bytes]:
    return lambda start, size: data[start : start + size]


def one_list(values: np.ndarray, kind: pa.DataType) -> pa.Table:
    return pa.table({"x": pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(values, kind))})


def with_fewer_values_in_its_footer(data: bytes, values: int) -> bytes:
    """The same file, whose footer says that a column has one value where it has `values`."""

    def number(n: int, size: int | None = None) -> bytes:
        parts = [(2 * n >> shift) & 127 for shift in range(0, 35, 7)]
        while size is None and len(parts) > 1 and parts[-1] == 0:
            parts.pop()
        parts = parts[:size]
        return bytes([part | 128 for part in parts[:-1]] + parts[-1:])

    said = number(values)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert said in data[footer:]
    return data[:footer] + data[footer:].replace(said, number(1, len(said)))


BOMBS = {
    "a run of one value in a list": written(one_list(np.zeros(2_000_000), pa.uint8())),
    "a compressed page": written(one_list(np.zeros(2_000_000), pa.int32()), use_dictionary=False),
    "a long text over and over": written(pa.table({"x": ["a" * 10_000] * 1_000})),
    "texts that share their beginning": written(
        pa.table({"x": ["a" * 10_000] * 1_000}), use_dictionary=False, column_encoding={"x": "DELTA_BYTE_ARRAY"}
    ),
    "texts in a list": written(pa.table({"x": [["a" * 10_000] * 1_000]})),
    "bytes of one length": written(pa.table({"x": pa.array([b"a" * 10_000] * 1_000, pa.binary(10_000))})),
    "lists in lists": written(pa.table({"x": [[[]] * 500_000]})),
}


@pytest.mark.parametrize("what", BOMBS)
@pytest.mark.parametrize("lies", [False, True])
def test_what_unpacks_to_much_is_refused_before_it_is_unpacked(what: str, lies: bool, allocated: pa.MemoryPool) -> None:
    data = BOMBS[what]
    assert len(data) < 20_000
    if lies:
        data = with_fewer_values_in_its_footer(
            data, pq.read_metadata(io.BytesIO(data)).row_group(0).column(0).num_values
        )
    with pytest.raises(
        Damaged if lies else TooMuch,
        match="the footer says 1" if lies else r"column x\S* (takes|has texts of) [0-9,]+ bytes",
    ):
        read(data, 4 * MIB)
    assert allocated.max_memory() < MIB


def test_unlimited_these_files_have_the_size_that_is_stated() -> None:
    """So that the test above is of what it says."""
    for what, data in BOMBS.items():
        table = pq.read_table(pa.BufferReader(data))
        assert table.nbytes > 1.9 * MIB, what
        assert read(data, 2**30).equals(table), what


@pytest.mark.parametrize("options", [
    {}, {"data_page_version": "2.0"}, {"compression": "none"}, {"use_dictionary": False}, {"row_group_size": 3},
    {"data_page_size": 64}, {"dictionary_pagesize_limit": 16},
    {"use_byte_stream_split": ["f"], "use_dictionary": ["t"]},
])  # fmt: skip
def test_an_honest_file_comes_out_as_arrow_reads_it(options: dict) -> None:
    draw = np.random.default_rng(3)
    texts = ["", "a", "a" * 40, None, "ü", *(str(each) for each in draw.integers(0, 99, 15))]
    table = pa.table(
        {
            "t": texts,
            "i": pa.array(draw.integers(-9, 9, 20), pa.int16()),
            "f": draw.normal(size=20),
            "b": [bool(each) for each in draw.integers(0, 2, 20)],
            "l": [None if n == 3 else list(range(n)) for n in range(20)],
            "s": [{"x": [[n], []], "y": {"z": "t" * n}} for n in range(20)],
            "d": pa.array([n * 10**9 for n in range(20)], pa.timestamp("ns")),
        }
    )
    data = written(table, **options)
    assert read(data, MIB).equals(pq.read_table(pa.BufferReader(data)))
    assert read(data, MIB, ["t", "l"]).equals(pq.read_table(pa.BufferReader(data), columns=["t", "l"]))


def test_any_damage_to_a_file_is_an_error_and_takes_no_memory(allocated: pa.MemoryPool) -> None:
    data = written(one_list(np.arange(300) % 7, pa.uint8()))
    footer = footer_in(part_of(data), len(data))
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    good = pq.read_table(pa.BufferReader(data))
    differing = 0
    for place in range(4, end):
        for bit in range(8):
            bad = bytearray(data)
            bad[place] ^= 1 << bit
            try:
                table = read_bounded(part_of(bytes(bad)), footer, [0], None, MIB)
            except (ValueError, OSError, pa.ArrowException):
                continue
            differing += not table.equals(good)
    assert allocated.max_memory() < 4 * MIB
    assert differing == 0


def shard(folder: Path, tokens: int) -> Path:
    """A shard of one row, of so many tokens."""
    zeros = np.zeros(tokens, np.uint8)
    row = {"task_id": "t", "pair": 0, "view": 0, "colours": "0123456789", "length": tokens}
    lists = {name: [zeros] for name in ("tokens", "rows", "columns")} | {"labelled": [zeros.astype(bool)]}
    path = folder / "train-00000.parquet"
    path.write_bytes(
        written(pa.table({**{name: [value] for name, value in row.items()}, **lists}, schema=FORMAT.schema))
    )
    return path


def test_a_shard_whose_rows_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocated: pa.MemoryPool
) -> None:
    path = shard(tmp_path, 3_000_000)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(rows, "MOST_GROUP_BYTES", 10 * MIB)
    before = allocated.max_memory()
    for call in (lambda: read_group(path, 0, FORMAT), lambda: check_file(path, 1, 1, FORMAT)):
        with pytest.raises(UserError, match=r"train-00000\.parquet.*column tokens\S* takes [0-9,]+ bytes .*Delete"):
            call()
    assert allocated.max_memory() - before < MIB
    assert [each.tolist() for each in read_lengths(path)] == [[3_000_000]]
    monkeypatch.setattr(rows, "MOST_LENGTHS_BYTES", 10)
    with pytest.raises(UserError, match="lengths cannot be read"):
        read_lengths(path)


def test_parquet_whose_tasks_would_fill_the_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, allocated: pa.MemoryPool
) -> None:
    """A few hundred bytes were read as lists of 50 million numbers: the footer says "82 bytes unpacked"."""
    monkeypatch.setattr(parquet, "MOST_MEMORY", 16 * MIB)
    zeros = pa.array(np.zeros(1_000_000, np.uint8))
    cells = pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)
    grids = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), cells)
    bomb = written(pa.table({"input": grids, "output": grids}))
    assert len(bomb) < 2_000
    before = allocated.max_memory()
    with pytest.raises(RefusedTask, match=r"x: cannot be read \(column input\S* takes [0-9,]+ bytes"):
        read_parquet(bomb, "x")
    assert allocated.max_memory() == before

    monkeypatch.setattr(parquet, "MOST_MEMORY", MIB)
    small = [{"input": [[]] * 5_000, "output": [[1]]}]
    text = json.dumps([[]] * 9_000)
    empty = [{"input": [[]], "output": [[]]}]
    for many in (
        [{"train": empty * 4_000, "test": empty}],
        [{"train": text, "test": text}],
    ):  # few bytes of Arrow's, many of Python's
        with pytest.raises(RefusedTask, match=r"its rows take [0-9,]+ bytes of memory"):
            read_parquet(written(pa.Table.from_pylist(many)), "x")
    rows, memory = read_parquet(written(pa.Table.from_pylist(small)), "x")
    assert rows == small
    assert 5_000 * 64 < memory < MIB


def test_the_estimated_size_of_parquet_is_close_to_its_size() -> None:
    draw = np.random.default_rng(0)
    many = [
        {"train": [{"input": draw.integers(0, 9, (9, 9)).tolist()}] * 3, "test": "[[1], [2, 3]]"} for _ in range(300)
    ]
    tracemalloc.start()
    rows, memory = read_parquet(written(pa.Table.from_pylist(many)), "x")
    took = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(rows) == 300
    assert 0.5 < memory / took < 2
