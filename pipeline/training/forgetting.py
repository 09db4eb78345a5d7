"""Forgetting, where training goes task after task: the loss on earlier tasks now, and right after each was finished."""

import math
import statistics

import torch
from torch import Tensor, nn

from pipeline import measures
from pipeline.data.sequence import Sequence
from pipeline.data.sequential import SequentialLoader
from pipeline.errors import UserError
from pipeline.training.evaluate import losses_of

MOST_TASKS = 64  # earlier tasks that are measured, evenly from the first to the last but one
SAMPLE_ROWS = 128  # of all of them together; two of each at least
_THEN = "losses_when_finished"


def sampled_tasks(tasks: int) -> dict[int, int]:
    """The numbers of the tasks whose forgetting is measured, each with its number of rows. The last task is not among
    them: no task follows it."""
    count = min(tasks - 1, MOST_TASKS)
    return {place * (tasks - 1) // count: max(2, SAMPLE_ROWS // count) for place in range(count)}


class Forgetting:
    """The sample, training rows of some tasks, and the loss on each task's right after its last step.

    The sample is the same for all trials on the same data. What is measured is the same on all workers.
    """

    def __init__(self, loader: SequentialLoader, autocast: bool) -> None:
        self._loader, self._autocast = loader, autocast
        self._sample: dict[int, list[Sequence]] = loader.sample(sampled_tasks(len(loader.tasks)))
        self._then: dict[int, float] = {}

    @property
    def rows(self) -> list[Sequence]:
        """All rows of the sample."""
        return [row for rows in self._sample.values() for row in rows]

    def after(self, model: nn.Module, step: int) -> None:
        """Measures the task whose last step this was, if it was one's and the task is in the sample."""
        number = self._loader.task_at(step)
        if number in self._sample and self._loader.ends[number] == step:
            self._then |= self._losses(model, [number])

    def metrics(self, model: nn.Module, step: int) -> dict[str, float]:
        """The mean loss on the sampled tasks that were finished before the task of this step, and by how much it is
        larger than right after each; none where there is no such task."""
        earlier = [number for number in self._sample if number < self._loader.task_at(step)]
        if not earlier:
            return {}
        now = self._losses(model, earlier)
        return {
            measures.FORGETTING_LOSS: statistics.fmean(now.values()),
            measures.FORGETTING_INCREASE: statistics.fmean(now[number] - self._then[number] for number in earlier),
        }

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold."""
        return {_THEN: torch.tensor([self._then.get(number, math.nan) for number in self._sample], dtype=torch.float64)}

    def take(self, step: int, state: dict[str, Tensor]) -> None:
        """Goes on from the state of a checkpoint of this step.

        Raises:
            UserError: it lacks what was measured before.
        """
        then = state.get(_THEN)
        if then is None or then.shape != (len(self._sample),):
            raise UserError("the checkpoint does not hold the losses on the tasks that were finished before it")
        known = zip(self._sample, then.tolist(), strict=True)
        self._then = {number: loss for number, loss in known if self._loader.ends[number] <= step}

    def _losses(self, model: nn.Module, numbers: list[int]) -> dict[int, float]:
        loader = self._loader
        rows = {number: self._sample[number] for number in numbers}
        place = loader.rank, loader.world_size
        return losses_of(model, rows, loader.budget, *place, task=loader.task, autocast=self._autocast)
