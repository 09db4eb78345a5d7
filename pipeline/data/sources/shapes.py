"""What a value holds: a task, tasks by id, tasks by split, a list of tasks or of pairs, solutions, or a submission."""

from collections.abc import Iterator
from typing import Any

from pipeline.data.arc_json import RefusedTask
from pipeline.data.randomness import generator
from pipeline.data.sources.found import Content, LearnedSplit, Raw

SPLITS: dict[str, LearnedSplit] = {
    "train": "train",
    "training": "train",
    "eval": "evaluation",
    "evaluation": "evaluation",
    "validation": "evaluation",
    "test": "evaluation",
}
_NAMES = ("id", "task_id", "name")


def content_of(value: Any, stem: str, place: str, pairs_per_task: int | None, seed: int) -> Content:
    """The tasks of a value, or what else it is. What is none of these is taken for one task, and refused as that.

    Args:
        stem: the id of a single task, and the first part of the ids in a list that names none.
        pairs_per_task: how many pairs are put together as a task where the value is a list of pairs.
        seed: of their order.

    Raises:
        RefusedTask: it is a list of pairs, and `pairs_per_task` is not given or larger than the list.
    """
    if isinstance(value, dict):
        if _is_submission(value):
            return Content(ignored="a submission: answers, no tasks")
        if _is_by_split(value):
            by_split = ((SPLITS[name], tasks) for name, tasks in value.items())
            return Content(tuple(Raw(each, task, split) for split, tasks in by_split for each, task in tasks.items()))
        if _is_by_id(value):
            return Content(tuple(Raw(str(name), task) for name, task in value.items()))
        if _is_solutions(value):
            return Content(solutions=value)
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        if all("input" in each for each in value):
            return Content(tuple(_sampled(value, stem, place, pairs_per_task, seed)))
        if all(_looks_like_task(each) for each in value):
            return Content(tuple(Raw(_name(each, stem, number), each) for number, each in enumerate(value)))
    return Content((Raw(stem, value),))


def _sampled(pairs: list[Any], stem: str, place: str, count: int | None, seed: int) -> Iterator[Raw]:
    """The pairs in random order, `count` to a task, the last of them to be solved; what is left over is left out."""
    if count is None:
        raise RefusedTask(
            f"{place}: a list of {len(pairs)} pairs, and no task; set data.pairs_per_task, for example to 4, to make "
            "tasks of so many of them, or write them as {train: [...], test: [...]}"
        )
    if len(pairs) < count:
        raise RefusedTask(f"{place}: a list of {len(pairs)} pairs, fewer than data.pairs_per_task={count}")
    order = generator("pairs", seed, stem, len(pairs)).permutation(len(pairs)).tolist()
    for number in range(len(pairs) // count):
        chosen = [pairs[place] for place in order[number * count : (number + 1) * count]]
        yield Raw(f"{stem}-{number:04d}", {"train": chosen[:-1], "test": chosen[-1:]}, family=place)


def _looks_like_task(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("train"), list) and isinstance(value.get("test"), list)


def _is_by_id(value: dict[Any, Any]) -> bool:
    """Objects alone, one of them a task: others will be refused by name."""
    of_objects = bool(value) and all(isinstance(task, dict) for task in value.values())
    return of_objects and any(map(_looks_like_task, value.values()))


def _is_by_split(value: dict[Any, Any]) -> bool:
    return bool(value) and all(
        name in SPLITS and isinstance(tasks, dict) and all(map(_looks_like_task, tasks.values()))
        for name, tasks in value.items()
    )


def _is_submission(value: dict[Any, Any]) -> bool:
    return bool(value) and all(
        isinstance(answers, list) and answers and all(isinstance(one, dict) and "attempt_1" in one for one in answers)
        for answers in value.values()
    )


def _is_solutions(value: dict[Any, Any]) -> bool:
    """{id: [grid, ...]}: so many lists within each other, whatever is in them."""
    return bool(value) and all(
        isinstance(grids, list)
        and grids
        and all(isinstance(grid, list) and grid and all(isinstance(row, list) for row in grid) for grid in grids)
        for grids in value.values()
    )


def _name(value: dict[str, Any], stem: str, number: int) -> str:
    for name in _NAMES:
        if isinstance(value.get(name), str | int) and str(value[name]):
            return str(value[name])
    return f"{stem}-{number:04d}"
