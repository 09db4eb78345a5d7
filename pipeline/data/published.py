"""A prepared data set in a storage: the same shards and manifest, and the rows' lengths, so that a rank need not ask
every shard for them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import MANIFEST, SPLITS, Prepared, Split
from pipeline.data.parquet_pages import footer_of, read_of
from pipeline.data.rows import MOST_LENGTHS_BYTES, read_by_arrow, read_lengths
from pipeline.data.shards import open_prepared
from pipeline.errors import UserError
from pipeline.storage.storage import Place, Storage

Progress = Callable[[int, int], None]
_COLUMNS = pa.schema([pa.field(name, pa.int32(), nullable=False) for name in ("shard", "group", "length")])


def publish(prepared: Prepared, storage: Storage, progress: Progress = lambda done, total: None) -> Prepared:
    """The data set of that name in `storage`, put there if it is not yet, the manifest last; read from there it is
    checked whole.

    One that is there is used even where this machine would write other bytes, as another version of pyarrow does.
    `progress(shards done, shards in all)` is called as they go.

    Raises:
        UserError: what is there is damaged.
        StorageError: the storage is away, or refuses.
    """
    assert isinstance(prepared.folder, Path)
    there = storage / prepared.folder.name
    if not (there / MANIFEST).is_file():
        shards = prepared.manifest.shards
        for done, shard in enumerate(shards):
            progress(done, len(shards))
            (there / shard.file).upload(prepared.folder / shard.file)
        for split in SPLITS:
            (there / _name(split)).write_bytes(_written(prepared, split))
        (there / MANIFEST).upload(prepared.folder / MANIFEST)
    return open_prepared(there, task=prepared.manifest.config.task)


def lengths_of(prepared: Prepared, split: Split) -> list[tuple[Place, int, np.ndarray]]:
    """For each row group of a split, in order: its shard, its number there, and its rows' lengths (int32).

    Raises:
        UserError: a file is damaged, or the lengths are not those of the manifest's row groups.
        StorageError: the storage is away.
    """
    shards = prepared.shards(split)
    if isinstance(prepared.folder, Path):
        of_shards = [read_lengths(prepared.path(shard)) for shard in shards]
    else:
        file = prepared.folder / _name(split)
        of_shards = _read(file, len(shards)) if shards else []
        for shard, groups in zip(shards, of_shards, strict=True):
            if (shard.rows, shard.row_groups) != (sum(map(len, groups)), len(groups)):
                raise UserError(
                    f"{file}: lists {sum(map(len, groups))} rows in {len(groups)} row groups of {shard.file}; the "
                    f"manifest lists {shard.rows} in {shard.row_groups}. Remove {prepared.folder} and prepare again."
                )
    return [
        (prepared.path(shard), number, lengths)
        for shard, groups in zip(shards, of_shards, strict=True)
        for number, lengths in enumerate(groups)
    ]


def _name(split: Split) -> str:
    return f"{split}-lengths.parquet"


def _written(prepared: Prepared, split: Split) -> bytes:
    parts: list[np.ndarray] = [np.zeros((0, 3), dtype=np.int32)]
    for number, shard in enumerate(prepared.shards(split)):
        for group, lengths in enumerate(read_lengths(prepared.path(shard))):
            parts.append(np.stack([np.full_like(lengths, number), np.full_like(lengths, group), lengths], axis=1))
    table = pa.table(list(np.concatenate(parts).T.copy()), schema=_COLUMNS)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _read(file: Storage, shards: int) -> list[list[np.ndarray]]:
    """By shard, by row group."""
    with read_by_arrow(file, f"{file}: lengths cannot be read"):
        footer = footer_of(file)
        table = read_of(file, footer, range(len(footer.rows)), _COLUMNS.names, MOST_LENGTHS_BYTES)
        shard, group, length = (table[name].to_numpy() for name in _COLUMNS.names)
    starts = np.flatnonzero((np.diff(shard) != 0) | (np.diff(group) != 0)) + 1
    by_shard: list[list[np.ndarray]] = [[] for _ in range(shards)]
    for start, lengths in zip((0, *starts), np.split(length, starts), strict=True):
        if len(lengths) and shard[start] < shards:
            by_shard[shard[start]].append(lengths)
    return by_shard
