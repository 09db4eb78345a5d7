"""Which of the training data are held out."""

from collections.abc import Sequence
from typing import Literal

from pipeline.data.randomness import stable_hash
from pipeline.data.related import related_groups
from pipeline.data.task import Task
from pipeline.errors import UserError

Purpose = Literal["test", "selection"]
FOR_SELECTION = "The held-out tasks are there to choose settings by; those of the test are set aside, unused."


def hold_out(tasks: Sequence[Task], part: float, seed: int, purpose: Purpose = "test") -> tuple[list[Task], list[Task]]:
    """(train, held out), about `part` of the tasks being held out; both in the order of `tasks`.

    A task is wholly on one side, and so are related tasks (`related.marks`). The choice is a function of the seed and
    the tasks' ids, not of their order. For selection, the tasks that would be held out for the test are on neither
    side, and about as many of the others are held out: what is chosen by them has seen nothing of the test.

    Raises:
        UserError: the tasks cannot be cut in two.
    """
    train, test = _cut(tasks, max(1, round(part * len(tasks))), seed, "hold out")
    return (train, test) if purpose == "test" else _cut(train, len(test), seed, "hold out for selection")


def hold_out_groups(
    groups: Sequence[Sequence[str]], part: float, seed: int, purpose: Purpose = "test"
) -> tuple[set[str], set[str]]:
    """(train, held out) of names in groups, each of which is wholly on one side; as `hold_out`, whose rule it is.

    Nothing is held out where there are fewer than two groups.
    """
    sets = [set(group) for group in groups]
    everything = set().union(*sets)
    test = _choose(sets, max(1, round(part * len(everything))), seed, "hold out")
    if purpose == "test":
        return everything - test, test
    left = [group for group in sets if not group & test]
    held = _choose(left, len(test), seed, "hold out for selection")
    return set().union(*left) - held, held


def _choose(groups: list[set[str]], target: int, seed: int, purpose: str) -> set[str]:
    """The names of the groups that are held out, about `target`; none of fewer than two groups."""
    if len(groups) < 2:
        return set()
    total = sum(map(len, groups))
    order = sorted(groups, key=lambda group: stable_hash(purpose, seed, min(group)))
    held: set[str] = set()
    for group in order:
        if len(held) + len(group) <= min(target, total - 1):
            held |= group
    return held or min(order, key=len)


def _cut(tasks: Sequence[Task], target: int, seed: int, purpose: str) -> tuple[list[Task], list[Task]]:
    groups = [{task.task_id for task in group} for group in related_groups(tasks)]
    if len(groups) < 2:
        raise UserError(
            f"data: all {len(tasks)} tasks are related, so none can be held out from training: each shares pairs with "
            "another (also rotated, mirrored or recoloured), or all are made of one list of pairs. Give tasks of at "
            "least 2 rules, or raise data.max_tokens."
        )
    held = _choose(groups, target, seed, purpose)
    train = [task for task in tasks if task.task_id not in held]
    return train, [task for task in tasks if task.task_id in held]
