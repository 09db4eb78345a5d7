"""Task after task: one rank's batches where training goes through the tasks of the data one after the other.

A task here is what `Task.group` makes of a row's `task_id`. The order is drawn from the data's seed, so that all trials
of a sweep have the same. Of S steps and N tasks the k-th, from 0, has the steps after k S // N up to (k + 1) S // N;
within them its rows are gone through again and again, anew in each pass. All ranks train on the same task in the same
step, whatever their number.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from pipeline.data.batch import Batch
from pipeline.data.contract import Task
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.data.plan import WINDOW_ROWS, Address, Plan, plan_pass
from pipeline.data.randomness import generator
from pipeline.data.row_reader import RowReader
from pipeline.data.sequence import Sequence as Row
from pipeline.errors import UserError
from pipeline.settings.config import Experiment


def last_steps(steps: int, tasks: int) -> list[int]:
    """For each task the last of its steps, counted from 1: equal shares, but for one step."""
    return [(number + 1) * steps // tasks for number in range(tasks)]


def order_of(names: Sequence[str], seed: int) -> list[str]:
    """The tasks in the order in which they are trained on; that in which they are given does not matter."""
    known = sorted(names)
    return [known[place] for place in generator("order of tasks", seed).permutation(len(known))]


def group_problem(task: Task, name: str) -> str | None:
    """Why the task that `data.task` names cannot be trained on in sequence; None where it can."""
    if task.group is not None:
        return None
    return (
        f"data.order: sequential needs groups of rows, but the Task of data.task: {name!r} has no `group`. Give it "
        "one, a function from a row's task_id to the name of its group, for example group=lambda task_id: task_id; or "
        "use data.order: mixed"
    )


class SequentialLoader:
    """The batches of `rank` among `world_size` ranks for all `steps` of a training, task after task.

    `tasks` are their names in order, `ends` the last step of each. Memory holds the place of each row, and the rows of
    the current task, of a large one those of a window.

    Raises:
        UserError: as `Loader`; or the data's task has no groups, there is one alone, or more than there are steps.
        StorageError: as `Loader`.
    """

    def __init__(
        self, prepared: Prepared, batch_tokens: int, seed: int, order_seed: int, steps: int, rank: int, world_size: int
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.task = prepared.task
        if problem := group_problem(self.task, prepared.manifest.config.task):
            raise UserError(f"{problem}.")
        assert self.task.group is not None
        self._reader = RowReader(prepared, "train", batch_tokens, world_size)
        self.budget = self._reader.budget
        self._places: dict[str, dict[int, list[int]]] = {}  # by task, by row group, the rows of it
        for group, ids in enumerate(self._reader.ids()):
            for row, task_id in enumerate(ids):
                self._places.setdefault(self.task.group(task_id), {}).setdefault(group, []).append(row)
        self.tasks = order_of(list(self._places), order_seed)
        if len(self.tasks) < 2:
            raise UserError(
                f"{self._reader.name}: data.order: sequential, but all rows belong to one task, {self.tasks[0]!r}. "
                "Give data of at least two tasks, or use data.order: mixed."
            )
        if len(self.tasks) > steps:
            raise UserError(
                f"{self._reader.name}: data.order: sequential needs a step for each task: there are {len(self.tasks)} "
                f"tasks to train on, but training.steps={steps}. Use training.steps >= {len(self.tasks)}, or data of "
                "fewer tasks."
            )
        self.ends = last_steps(steps, len(self.tasks))
        self._planned: tuple[tuple[int, int], Plan] = ((-1, -1), ())
        self._held: tuple[frozenset[Address], dict[Address, Row]] = (frozenset(), {})

    def task_at(self, step: int) -> int:
        """The number, from 0, of the task that a step, counted from 1, trains on."""
        return bisect_right(self.ends, step - 1)

    def stream(self, step: int = 0) -> Iterator[tuple[int, Batch]]:
        """(pass over the current task's rows, batch) from global step `step` on, counted from 0, to the last."""
        first = self.task_at(step + 1)
        for number in range(first, len(self.tasks)):
            begin = self.ends[number - 1] if number else 0
            skipped, share = max(0, step - begin), self.ends[number] - begin
            for again in itertools.count():
                batches = self._plan(number, again)[self.rank][:share]
                if skipped < len(batches):
                    for batch in self._read(number, again, skipped, share):
                        yield again, batch
                skipped, share = max(0, skipped - len(batches)), share - len(batches)
                if not share:
                    break

    def expected(self, steps: int) -> tuple[float, float]:
        """(tokens of one of this rank's steps, padding included; passes over a task's rows), means over the tasks."""
        tokens = passes = 0.0
        for number, (begin, end) in enumerate(itertools.pairwise([0, *self.ends])):
            batches = self._plan(number, 0)[self.rank]
            tokens += (end - begin) * sum(batch.padded_tokens for batch in batches) / len(batches)
            passes += (end - begin) / len(batches)
        return tokens / steps, passes / len(self.tasks)

    def sample(self, wanted: Mapping[int, int]) -> dict[int, list[Row]]:
        """By number of the task, the first of its rows in the data, so many of each or all; the same on all ranks.

        Raises:
            UserError: a shard is damaged.
        """
        places = {number: self._addresses(number)[:count] for number, count in wanted.items()}
        rows = self._reader.read(frozenset(itertools.chain.from_iterable(places.values())))
        return {number: [rows[address] for address in each] for number, each in places.items()}

    def _addresses(self, number: int) -> list[Address]:
        return [(group, row) for group, rows in self._places[self.tasks[number]].items() for row in rows]

    def _plan(self, number: int, again: int) -> Plan:
        if self._planned[0] != (number, again):
            places, name = self._places[self.tasks[number]], self.tasks[number]
            made = plan_pass(places, self._reader.lengths, (self.seed, name, again), self.world_size, self.budget)
            self._planned = ((number, again), made)
        return self._planned[1]

    def _read(self, number: int, again: int, start: int, stop: int) -> Iterator[Batch]:
        batches = self._plan(number, again)[self.rank]
        whole = self._addresses(number)
        for _, window in itertools.groupby(batches[start:stop], key=lambda batch: batch.window):
            here = tuple(window)
            of_window = whole if len(whole) <= WINDOW_ROWS else (address for batch in here for address in batch.rows)
            wanted = frozenset(of_window)
            if self._held[0] != wanted:
                self._held = (wanted, self._reader.read(wanted))
            for batch in here:
                yield self.task.batch([self._held[1][address] for address in batch.rows])


def open_loader(
    experiment: Experiment, prepared: Prepared, rank: int = 0, world_size: int = 1
) -> Loader | SequentialLoader:
    """The training batches of a rank, in the order that `data.order` says.

    Raises:
        UserError, StorageError: as the loaders.
    """
    training = experiment.training
    if experiment.data.order == "mixed":
        return Loader(prepared, "train", training.batch_tokens, training.seed, rank, world_size)
    seeds = training.seed, experiment.data.seed
    return SequentialLoader(prepared, training.batch_tokens, *seeds, training.steps, rank, world_size)
