"""Which training tasks are held out."""

from collections.abc import Sequence

from pipeline.data.randomness import stable_hash
from pipeline.data.related import related_groups
from pipeline.data.task import Task
from pipeline.errors import UserError


def hold_out(tasks: Sequence[Task], part: float, seed: int) -> tuple[list[Task], list[Task]]:
    """(train, held out), about `part` of the tasks being held out; both in the order of `tasks`.

    A task is wholly on one side, and so are related tasks (`related.marks`). The choice is a function of the seed and
    the tasks' ids, not of their order.

    Raises:
        UserError: the tasks cannot be cut in two.
    """
    groups = [{task.task_id for task in group} for group in related_groups(tasks)]
    if len(groups) < 2:
        raise UserError(
            f"data: {len(tasks)} tasks that are all related: each shares pairs with another, as they are, turned, "
            "mirrored or recoloured, or all are made of one list of pairs. None can be held out from training. Give "
            "tasks of at least 2 rules, or raise data.max_tokens."
        )
    target = max(1, round(part * len(tasks)))
    order = sorted(groups, key=lambda group: stable_hash("hold out", seed, min(group)))
    held: set[str] = set()
    for group in order:
        if len(held) + len(group) <= min(target, len(tasks) - 1):
            held |= group
    if not held:
        held = min(order, key=len)
    train = [task for task in tasks if task.task_id not in held]
    return train, [task for task in tasks if task.task_id in held]
