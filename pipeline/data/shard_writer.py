"""Writes a prepared data set into an empty folder: splits, views, shards and, last, the manifest."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.arc import Corpus
from pipeline.data.augment import IDENTITY, View, view_task, views
from pipeline.data.manifest import (
    SCHEMA_VERSION,
    Leak,
    Manifest,
    Shard,
    Split,
    SplitCounts,
    data_hash,
    file_hash,
    write_manifest,
)
from pipeline.data.randomness import generator
from pipeline.data.related import leakage
from pipeline.data.rows import MEMORY_OF_TOKEN, MOST_GROUP_BYTES, SCHEMA, Row, table_of
from pipeline.data.split import hold_out
from pipeline.data.task import Task
from pipeline.data.tokens import WHOLE, encode_task, encoded_length
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig

Progress = Callable[[int, int], None]
# One row that is yet to be encoded: a task, which of its test pairs (or WHOLE), seen how.
Entry = tuple[Task, int, View]


def write_data_set(config: DataConfig, corpus: Corpus, folder: Path, progress: Progress) -> None:
    """Shards and manifest of the corpus, in `folder`; rows are encoded one row group at a time.

    Raises:
        UserError: too few tasks to hold some out.
        OSError: the folder cannot be written to.
    """
    fitting = [task for task in corpus.train if _fits([(task, WHOLE, IDENTITY)], config)]
    if len(fitting) < 2:
        raise UserError(_too_few(corpus.train, len(fitting), config))
    train, held_out = hold_out(fitting, config.held_out, config.seed, config.held_out_for)
    judged = {task.task_id: _answers(task) for task in corpus.evaluation}
    evaluation = [task for task in corpus.evaluation if _fits(judged[task.task_id], config)]

    seen = [(task, WHOLE, view) for task in train for view in views(task.task_id, config)]
    rows = [entry for entry in seen if _fits([entry], config)]
    order = generator("order of rows", config.seed).permutation(len(rows))
    entries: dict[Split, list[Entry]] = {
        "train": [rows[i] for i in order],
        "held_out": [entry for task in held_out for entry in _answers(task)],
        "evaluation": [entry for task in evaluation for entry in judged[task.task_id]],
    }
    tasks: dict[Split, list[Task]] = {"train": train, "held_out": held_out, "evaluation": evaluation}
    too_long: dict[Split, tuple[int, int]] = {
        "train": (len(corpus.train) - len(fitting), len(seen) - len(rows)),
        "held_out": (0, 0),
        "evaluation": (len(corpus.evaluation) - len(evaluation), 0),
    }
    total = sum(map(len, entries.values()))
    shards: list[Shard] = []
    counts: dict[Split, SplitCounts] = {}
    for split, part in entries.items():
        done = sum(shard.rows for shard in shards)
        written, tokens, labelled = _write_split(split, part, config, folder, partial(_report, progress, done, total))
        shards += written
        counts[split] = SplitCounts(
            tasks=len(tasks[split]),
            rows=len(part),
            tokens=tokens,
            labelled_tokens=labelled,
            too_long_tasks=too_long[split][0],
            too_long_views=too_long[split][1],
        )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        dataset=config.dataset,
        config=config,
        source_hash=corpus.source_hash,
        data_hash=data_hash(shards),
        counts=counts,
        refused=corpus.refused,
        notes=corpus.notes,
        leakage=tuple(
            Leak(split=split, task=other, train_task=ours)
            for split in ("held_out", "evaluation")
            for ours, other in leakage(train, tasks[split])
        ),
        shards=tuple(shards),
    )
    write_manifest(manifest, folder)


def _write_split(
    split: Split, entries: Sequence[Entry], config: DataConfig, folder: Path, progress: Callable[[int], None]
) -> tuple[list[Shard], int, int]:
    """Writes the rows, encoding one row group at a time; (shards, tokens, labelled tokens)."""
    shards: list[Shard] = []
    tokens = labelled = 0
    for start in range(0, len(entries), config.rows_per_shard):
        part = entries[start : start + config.rows_per_shard]
        file = folder / f"{split}-{len(shards):05d}.parquet"
        groups = 0
        with pq.ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
            for table in _tables(part, config.rows_per_group):
                if (size := MEMORY_OF_TOKEN * sum(table["length"].to_pylist())) > MOST_GROUP_BYTES:
                    raise UserError(
                        f"data.rows_per_group={config.rows_per_group}: {table.num_rows} rows take {size:,} bytes in "
                        f"memory; at most {MOST_GROUP_BYTES:,} are read. Use smaller row groups."
                    )
                writer.write_table(table)
                groups += 1
                tokens += sum(table["length"].to_pylist())
                labelled += int(table["labelled"].combine_chunks().flatten().true_count)
                progress(start + min(groups * config.rows_per_group, len(part)))
        shards.append(Shard(file=file.name, split=split, rows=len(part), row_groups=groups, sha256=file_hash(file)))
    return shards, tokens, labelled


def _tables(entries: Sequence[Entry], rows: int) -> Iterator[pa.Table]:
    left = iter(entries)
    while batch := list(islice(left, rows)):
        yield table_of(Row(encode_task(view_task(task, view), pair), view) for task, pair, view in batch)


def _answers(task: Task) -> list[Entry]:
    """One row for each test pair, as it is."""
    return [(task, pair, IDENTITY) for pair in range(len(task.test))]


def _too_few(tasks: Sequence[Task], fitting: int, config: DataConfig) -> str:
    """What to say where there are not two tasks to tell apart, one to train on and one to hold out."""
    lengths = sorted(encoded_length(task.pairs) for task in tasks)
    if len(tasks) < 2:
        return f"data: {len(tasks)} task; at least 2 are needed, to train on and to hold out. Give more tasks."
    half = lengths[(len(lengths) - 1) // 2]
    how = "all" if not fitting else "all but 1"
    return (
        f"data: {len(tasks)} tasks, {how} longer than {config.max_tokens} tokens; the shortest has {lengths[0]:,}, "
        f"half fit in {half:,}. Raise data.max_tokens (and training.batch_tokens with it), or give shorter tasks."
    )


def _fits(entries: Sequence[Entry], config: DataConfig) -> bool:
    return all(
        encoded_length(task.pairs if pair == WHOLE else [*task.train, task.test[pair]], view.transposes)
        <= config.max_tokens
        for task, pair, view in entries
    )


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)
