"""One rank's batches, read from its own row groups, in an order that can be taken up at any step."""

import itertools
from collections.abc import Iterator

from pipeline.data.batch import Batch
from pipeline.data.manifest import Prepared, Split
from pipeline.data.plan import PlannedBatch, UnequalSteps, plan_epoch
from pipeline.data.row_reader import RowReader
from pipeline.errors import UserError


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
        self._reader = RowReader(prepared, split, batch_tokens, world_size)
        self.budget, self.task = self._reader.budget, prepared.task
        self._planned: tuple[int, tuple[PlannedBatch, ...]] = (0, self._make_plan(0))

    def steps_per_epoch(self, epoch: int) -> int:
        """How many batches `epoch` has, the same on every rank. Epochs may differ a little, as rows are mixed anew."""
        return len(self._plan(epoch))

    def padded_tokens(self, epoch: int) -> int:
        """The tokens of this rank's batches of `epoch`, padding included."""
        return sum(batch.padded_tokens for batch in self._plan(epoch))

    def expected(self, steps: int) -> tuple[float, float]:
        """(tokens of one of this rank's steps, padding included, as a mean; epochs that so many steps make)."""
        of_epoch = self.steps_per_epoch(0)
        return self.padded_tokens(0) / of_epoch, steps / of_epoch

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from step `start` of it on; reads no row group that only earlier batches need.

        Raises:
            UserError: a shard is damaged; names file and row group.
        """
        for _, window in itertools.groupby(self._plan(epoch)[start:], key=lambda batch: batch.window):
            here = tuple(window)
            rows = self._reader.read({address for batch in here for address in batch.rows})
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

    def _plan(self, epoch: int) -> tuple[PlannedBatch, ...]:
        if self._planned[0] != epoch:
            self._planned = (epoch, ())  # two plans at once would take twice the memory
            self._planned = (epoch, self._make_plan(epoch))
        return self._planned[1]

    def _make_plan(self, epoch: int) -> tuple[PlannedBatch, ...]:
        try:
            return plan_epoch(self._reader.lengths, self.seed, epoch, self.world_size, self.budget)[self.rank]
        except UnequalSteps as error:
            lengths = self._reader.lengths
            raise UserError(
                f"{self._reader.name}: {sum(map(len, lengths))} rows in {len(lengths)} row groups are too few for "
                f"{self.world_size} ranks in epoch {epoch}: {error}. Use fewer workers (workers.count), a larger "
                "training.batch_tokens, or smaller row groups (data.rows_per_group)."
            ) from error
