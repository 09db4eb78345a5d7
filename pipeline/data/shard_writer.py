"""Writes a prepared data set into an empty folder: shards and, last, the manifest."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.contract import Rows, Source, Split, Task
from pipeline.data.manifest import (
    SCHEMA_VERSION,
    Leak,
    Manifest,
    Shard,
    SplitCounts,
    data_hash,
    file_hash,
    write_manifest,
)
from pipeline.data.rows import MEMORY_OF_TOKEN, MOST_GROUP_BYTES, table_of
from pipeline.data.sequence import Sequence, check_sequence
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig

Progress = Callable[[int, int], None]
_JUDGED: tuple[Split, ...] = ("evaluation", "held_out")


def write_data_set(task: Task, config: DataConfig, source: Source, folder: Path, progress: Progress) -> None:
    """Shards and manifest of the source, in `folder`; rows are made one row group at a time. Training rows that equal a
    held-out or evaluation row are named as leaks.

    Raises:
        UserError: a row is not of the task's format; or as `source.splits`.
        OSError: the folder cannot be written to.
    """
    made = source.splits()
    parts: dict[Split, Rows] = {"train": made.train, "held_out": made.held_out, "evaluation": made.evaluation}
    total = sum(len(part.rows) for part in parts.values())
    judged = {_content(row): (split, row.task_id) for split in _JUDGED for row in parts[split].rows}
    leaks = dict.fromkeys(made.leaks)
    shards: list[Shard] = []
    counts: dict[Split, SplitCounts] = {}
    for split, part in parts.items():
        done = sum(shard.rows for shard in shards)
        report = partial(_report, progress, done, total)
        rows = _noting(part.rows, judged, leaks) if split == "train" else part.rows
        written, tokens, labelled = _write_split(task, split, rows, config, folder, report)
        shards += written
        counts[split] = SplitCounts(
            tasks=part.items,
            rows=len(part.rows),
            tokens=tokens,
            labelled_tokens=labelled,
            too_long_tasks=part.too_long,
            too_long_views=part.too_long_views,
        )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        dataset=task.data_name(config),
        config=config,
        source_hash=source.hash,
        data_hash=data_hash(shards),
        counts=counts,
        refused=source.refused,
        notes=source.notes,
        leakage=tuple(Leak(split=split, task=other, train_task=ours) for split, other, ours in leaks),
        shards=tuple(shards),
    )
    write_manifest(manifest, folder)


def _noting(
    rows: Iterable[Sequence], judged: Mapping[bytes, tuple[Split, str]], leaks: dict[tuple[Split, str, str], None]
) -> Iterator[Sequence]:
    """The rows; those that equal one that the model is judged by are added to `leaks`, whatever task they are of."""
    for row in rows:
        if (related := judged.get(_content(row))) is not None:
            leaks[(*related, row.task_id)] = None
        yield row


def _content(row: Sequence) -> bytes:
    parts = [np.asarray(each).astype(np.int64).tobytes() for each in (row.tokens, *row.coordinates)]
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def _write_split(
    task: Task,
    split: Split,
    rows: Iterable[Sequence],
    config: DataConfig,
    folder: Path,
    progress: Callable[[int], None],
) -> tuple[list[Shard], int, int]:
    """Writes the rows, making one row group at a time; (shards, tokens, labelled tokens)."""
    shards: list[Shard] = []
    tokens = labelled = done = 0
    where = f"data.task: {config.task!r}, split {split}"
    tables = _tables(task, rows, config, where)
    table = next(tables, None)
    while table is not None:
        file = folder / f"{split}-{len(shards):05d}.parquet"
        groups = here = 0
        with pq.ParquetWriter(file, task.format.schema, compression="zstd", write_page_checksum=True) as writer:
            while table is not None and here < config.rows_per_shard:
                writer.write_table(table)
                groups, here = groups + 1, here + table.num_rows
                tokens += sum(table["length"].to_pylist())
                labelled += _labelled(task, table)
                done += table.num_rows
                progress(done)
                table = next(tables, None)
        shards.append(Shard(file=file.name, split=split, rows=here, row_groups=groups, sha256=file_hash(file)))
    return shards, tokens, labelled


def _tables(task: Task, rows: Iterable[Sequence], config: DataConfig, where: str) -> Iterator[pa.Table]:
    """The rows of a row group each; no group spans two shards."""
    left = iter(rows)
    room = config.rows_per_shard
    while batch := list(islice(left, min(config.rows_per_group, room))):
        room = room - len(batch) or config.rows_per_shard
        for row in batch:
            check_sequence(row, task.format, config.max_tokens, where)
        table = table_of(batch, task.format)
        if (size := MEMORY_OF_TOKEN * sum(table["length"].to_pylist())) > MOST_GROUP_BYTES:
            raise UserError(
                f"data.rows_per_group={config.rows_per_group}: {table.num_rows} rows take {size:,} bytes in "
                f"memory; at most {MOST_GROUP_BYTES:,} are read. Use smaller row groups."
            )
        yield table


def _labelled(task: Task, table: pa.Table) -> int:
    values = table[task.format.target].combine_chunks().flatten()
    return int(values.true_count) if task.format.classes is None else int((values.to_numpy() >= 0).sum())


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)
