"""Views of a task: turned, mirrored and recoloured, each with its inverse. What a task asks stays the same."""

from dataclasses import dataclass

import numpy as np

from pipeline.data.randomness import generator
from pipeline.data.task import COLOURS, Pair, Task, grid_of
from pipeline.settings.config import DataConfig

IDENTITY_COLOURS = tuple(range(COLOURS))


@dataclass(frozen=True)
class View:
    """One of the eight symmetries of the square, and then a recolouring: colour c becomes `colours[c]`.

    `dihedral` 0..3: that many quarter turns to the left; 4..7: transposed, then `dihedral - 4` quarter turns.
    """

    dihedral: int = 0
    colours: tuple[int, ...] = IDENTITY_COLOURS

    @property
    def transposes(self) -> bool:
        """Whether height and width change places."""
        return self.dihedral in (1, 3, 4, 6)


IDENTITY = View()


def views(task_id: str, config: DataConfig) -> tuple[View, ...]:
    """The views of a task, the identity first: each symmetry in the original colours, then in others with 0 fixed.

    A recolouring depends on (seed, task, symmetry, its number) alone: asking for more views changes none of the others.
    """
    return tuple(
        View(dihedral, colouring(config.seed, task_id, dihedral, number))
        for number in range(config.colour_permutations)
        for dihedral in range(config.dihedral_views)
    )


def colouring(seed: int, task_id: str, dihedral: int, number: int) -> tuple[int, ...]:
    """A permutation of the colours that leaves 0 alone; number 0 is the identity."""
    if number == 0:
        return IDENTITY_COLOURS
    permuted = generator("colours", seed, task_id, dihedral, number).permutation(np.arange(1, COLOURS))
    return (0, *(int(colour) for colour in permuted))


def inverse(view: View) -> View:
    """The view that undoes `view`: `view_grid(view_grid(g, v), inverse(v))` is g."""
    dihedral = -view.dihedral % 4 if view.dihedral < 4 else view.dihedral  # a reflection undoes itself
    return View(dihedral, tuple(int(c) for c in np.argsort(view.colours)))


def view_grid(grid: np.ndarray, view: View) -> np.ndarray:
    """`grid` [H, W] as seen in `view`: [H, W] or [W, H]."""
    turned = np.rot90(grid if view.dihedral < 4 else grid.T, view.dihedral % 4)
    return grid_of(np.array(view.colours, dtype=np.int8)[turned])


def view_task(task: Task, view: View) -> Task:
    """Every grid of the task in the same view."""
    if view == IDENTITY:
        return task

    def seen(pair: Pair) -> Pair:
        return Pair(view_grid(pair.input, view), None if pair.output is None else view_grid(pair.output, view))

    return Task(task.task_id, tuple(map(seen, task.train)), tuple(map(seen, task.test)), task.family)
