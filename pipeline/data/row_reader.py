"""Rows of a split by their place, read row group by row group; their lengths, and what they are part of, are known."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from pipeline.data.manifest import Prepared, Split
from pipeline.data.plan import Address
from pipeline.data.published import lengths_of
from pipeline.data.rows import read_footer, read_group, read_ids
from pipeline.data.sequence import Sequence
from pipeline.errors import UserError
from pipeline.storage.storage import Place, patiently

_READERS = 8  # of a storage, at a time
_FOOTERS = 64  # of shards, kept: a footer may be larger than what is read of the shard, and takes as long to read


class RowReader:
    """The rows of a split for one of `world_size` ranks, which together have `batch_tokens` in a step.

    `lengths[g]` are the lengths of row group g's rows, `budget` the tokens of a rank's batch, padding included.

    Raises:
        UserError: a shard is damaged, the split is empty, or a row is longer than a rank's budget.
        StorageError: the storage that the shards lie in has been away for a minute; also where rows are read.
    """

    def __init__(self, prepared: Prepared, split: Split, batch_tokens: int, world_size: int) -> None:
        self.name = f"{prepared.folder}, split {split}"
        self.budget = batch_tokens // world_size
        self._format = prepared.task.format
        self._footer = lru_cache(_FOOTERS)(lambda path: patiently(partial(read_footer, path)))
        self._readers = 1 if isinstance(prepared.folder, Path) else _READERS  # a storage answers late, but many at once
        self._groups: list[tuple[Place, int]] = []
        self.lengths: list[np.ndarray] = []
        for path, number, lengths in patiently(lambda: lengths_of(prepared, split)):
            self._groups.append((path, number))
            self.lengths.append(lengths)
        if not self.lengths:
            raise UserError(f"{self.name}: has no rows. Raise data.max_tokens or give more data.")
        longest = max(int(group.max()) for group in self.lengths)
        if longest > self.budget:
            raise UserError(
                f"{self.name}: a row has {longest} tokens, but training.batch_tokens={batch_tokens} over {world_size} "
                f"workers leaves {self.budget}; use batch_tokens >= {longest * world_size}"
            )

    def ids(self) -> list[list[str]]:
        """For each row group, its rows' `task_id`.

        Raises:
            UserError: a shard is damaged.
        """
        shards = list(dict.fromkeys(path for path, _ in self._groups))
        with ThreadPoolExecutor(self._readers) as pool:
            by_group = [ids for of_shard in pool.map(lambda path: patiently(partial(read_ids, path)), shards)
                     for ids in of_shard]  # fmt: skip
        if list(map(len, by_group)) != list(map(len, self.lengths)):
            raise UserError(
                f"{self.name}: its row groups have other numbers of rows than planned. Prepare the data again."
            )
        return by_group

    def read(self, wanted: Collection[Address]) -> dict[Address, Sequence]:
        """The rows at these places; reads the row groups that they are in, and no others.

        Raises:
            UserError: a shard is damaged; names file and row group.
        """
        groups = sorted({group for group, _ in wanted})
        rows: dict[Address, Sequence] = {}
        with ThreadPoolExecutor(self._readers) as pool:
            list(pool.map(self._footer, {self._groups[group][0] for group in groups}))
            for group, sequences in zip(groups, pool.map(self._read_group, groups), strict=True):
                rows |= {(group, row): each for row, each in enumerate(sequences) if (group, row) in wanted}
        return rows

    def _read_group(self, group: int) -> list[Sequence]:
        path, index = self._groups[group]
        sequences = patiently(partial(read_group, path, index, self._format, self._footer(path)))
        if [len(sequence) for sequence in sequences] != self.lengths[group].tolist():
            raise UserError(
                f"{path}, row group {index}: its rows have other lengths than planned. Prepare the data again."
            )
        return sequences
