"""What settings know of the built-in tasks without importing them: each one's own settings, and its scores.

The tasks themselves are in `pipeline.tasks`; a test compares the scores. A task of one's own has `data.options`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DEFAULT_TASK = "arc"


@dataclass(frozen=True)
class BuiltInTask:
    """One of them.

    Attributes:
        settings: dotted names of the settings that only this task reads; other tasks refuse them.
        scores: the metrics of its scores.
        problem: (data settings) -> what is wrong with them, or None.
    """

    settings: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    problem: Callable[[Any], str | None] = lambda data: None


def _arc_problem(data: Any) -> str | None:
    if data.dataset == "folder" and data.folder is None:
        return "folder: is missing; with dataset: folder it names a folder of ARC JSON files"
    if data.dataset != "folder" and data.folder is not None:
        return f"folder: found {data.folder!r}, but dataset: {data.dataset}; expected dataset: folder"
    return None


BUILT_IN_TASKS = {
    "arc": BuiltInTask(
        settings=(
            "data.dataset",
            "data.pairs_per_task",
            "data.dihedral_views",
            "data.colour_permutations",
            "training.vote_views",
        ),
        problem=_arc_problem,
    ),
    "text": BuiltInTask(scores=("held_out/bits_per_byte",)),
}


def not_of(task: str) -> dict[str, str]:
    """The settings that `task` does not read, each with the task whose own it is."""
    return {name: other for other, its in BUILT_IN_TASKS.items() if other != task for name in its.settings}
