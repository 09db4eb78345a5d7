"""One rank's batches, read from its own row groups, in an order that can be taken up at any step."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from pipeline.data.batch import Batch
from pipeline.data.manifest import Prepared, Split
from pipeline.data.plan import Address, PlannedBatch, UnequalSteps, plan_epoch
from pipeline.data.published import lengths_of
from pipeline.data.rows import read_footer, read_group
from pipeline.data.sequence import Sequence
from pipeline.errors import UserError
from pipeline.storage.storage import Place, patiently

_READERS = 8  # of a storage, at a time
_FOOTERS = 64  # of shards, kept: a footer may be larger than what is read of the shard, and takes as long to read


class Loader:
    """The batches of `rank` among `world_size` ranks; `batch_tokens` is the budget of a step over all ranks.

    Every rank takes the same number of steps, in which together they see every row of the split exactly once an epoch.
    The order is a function of (seed, epoch, world size) alone. Memory holds the rows' lengths and one window of rows.

    Raises:
        UserError: a shard is damaged, the split is empty, a row is longer than a rank's budget, or there are too few
            rows for so many ranks.
        StorageError: the storage that the shards lie in has been away for a minute; also where batches are read.
    """

    def __init__(
        self, prepared: Prepared, split: Split, batch_tokens: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.budget = batch_tokens // world_size
        self._here = isinstance(prepared.folder, Path)
        self.task = prepared.task
        self._footer = lru_cache(_FOOTERS)(lambda path: patiently(partial(read_footer, path)))
        self._name = f"{prepared.folder}, split {split}"
        self._groups: list[tuple[Place, int]] = []
        self._lengths: list[np.ndarray] = []
        for path, number, lengths in patiently(lambda: lengths_of(prepared, split)):
            self._groups.append((path, number))
            self._lengths.append(lengths)
        if not self._lengths:
            raise UserError(f"{self._name}: there is no row. Raise data.max_tokens or give more data.")
        longest = max(int(group.max()) for group in self._lengths)
        if longest > self.budget:
            raise UserError(
                f"{self._name}: a row has {longest} tokens, but training.batch_tokens={batch_tokens} over {world_size} "
                f"workers leaves {self.budget}; use batch_tokens >= {longest * world_size}"
            )
        self._planned: tuple[int, tuple[PlannedBatch, ...]] = (0, self._make_plan(0))

    def steps_per_epoch(self, epoch: int) -> int:
        """How many batches `epoch` has, the same on every rank. Epochs may differ a little, as rows are mixed anew."""
        return len(self._plan(epoch))

    def padded_tokens(self, epoch: int) -> int:
        """The tokens of this rank's batches of `epoch`, padding included."""
        return sum(batch.padded_tokens for batch in self._plan(epoch))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from step `start` of it on; reads no row group that only earlier batches need.

        Raises:
            UserError: a shard is damaged; names file and row group.
        """
        for _, window in itertools.groupby(self._plan(epoch)[start:], key=lambda batch: batch.window):
            here = tuple(window)
            rows = self._read(here)
            for batch in here:
                yield self.task.batch([rows[address] for address in batch.rows])

    def stream(self, step: int = 0) -> Iterator[tuple[int, Batch]]:
        """(epoch, batch) without end, from global step `step` on, counted from 0."""
        epoch = 0
        while step >= (steps := self.steps_per_epoch(epoch)):
            step -= steps
            epoch += 1
        while True:
            for batch in self.batches(epoch, step):
                yield epoch, batch
            epoch, step = epoch + 1, 0

    def _read(self, batches: tuple[PlannedBatch, ...]) -> dict[Address, Sequence]:
        wanted = {address for batch in batches for address in batch.rows}
        groups = sorted({group for group, _ in wanted})
        rows: dict[Address, Sequence] = {}
        with ThreadPoolExecutor(1 if self._here else _READERS) as pool:  # a storage answers late, but many at a time
            list(pool.map(self._footer, {self._groups[group][0] for group in groups}))
            for group, sequences in zip(groups, pool.map(self._read_group, groups), strict=True):
                rows |= {(group, row): each for row, each in enumerate(sequences) if (group, row) in wanted}
        return rows

    def _read_group(self, group: int) -> list[Sequence]:
        path, index = self._groups[group]
        sequences = patiently(partial(read_group, path, index, self.task.format, self._footer(path)))
        if [len(sequence) for sequence in sequences] != self._lengths[group].tolist():
            raise UserError(f"{path}, row group {index}: its rows are not as long as was planned with.")
        return sequences

    def _plan(self, epoch: int) -> tuple[PlannedBatch, ...]:
        if self._planned[0] != epoch:
            self._planned = (epoch, ())  # two plans at once would take twice the memory
            self._planned = (epoch, self._make_plan(epoch))
        return self._planned[1]

    def _make_plan(self, epoch: int) -> tuple[PlannedBatch, ...]:
        try:
            return plan_epoch(self._lengths, self.seed, epoch, self.world_size, self.budget)[self.rank]
        except UnequalSteps as error:
            rows = sum(map(len, self._lengths))
            raise UserError(
                f"{self._name}: {rows} rows in {len(self._lengths)} row groups are too few for {self.world_size} ranks "
                f"in epoch {epoch}: {error}. Use fewer workers (workers.count), a larger training.batch_tokens, or "
                "smaller row groups (data.rows_per_group)."
            ) from error
