"""The count of related tasks, on tasks whose common pairs are known."""

import pytest

from experiments.related_tasks import common_pairs, describe, main
from pipeline.data.augment import View, view_task
from pipeline.data.task import Pair, Task, grid_of
from tests.pipeline.arc_samples import write_tasks

LARGE = Pair(grid_of([[0, 1, 2, 3], [4, 5, 6, 7]]), grid_of([[0, 0, 1, 2], [3, 3, 4, 5], [6, 6, 7, 8]]))  # 20 cells
SMALL = Pair(grid_of([[0, 1, 2]]), grid_of([[2, 1]]))  # 5 cells
OTHERS = [Pair(grid_of([[n] * (n + 3)]), grid_of([[1, 2] * (n + 2)])) for n in range(4)]
TASKS = [
    Task("a", (LARGE, OTHERS[0]), (OTHERS[0],)),
    view_task(Task("turned", (LARGE, OTHERS[1]), (SMALL,)), View(3, (5, 0, 1, 2, 3, 4, 6, 7, 8, 9))),
    Task("chance", (SMALL, OTHERS[2]), (OTHERS[3],)),
]


def test_common_pairs_are_found_in_any_view_and_only_large_or_several_ones_count(tmp_path, capsys) -> None:
    assert common_pairs(TASKS) == {(0, 1): [20], (1, 2): [5]}
    text = describe("three", TASKS)
    assert text.startswith("three: 3 tasks, 9 pairs, 2 groups, 1 of more than one task, the largest of 2; found in ")
    related, chance = text.split("too small to count")
    assert "a and turned: 1 pair of 20 cells" in related
    assert "turned and chance: 1 pair of 5 cells" in chance
    assert main([str(write_tasks(tmp_path, TASKS))]) == 0
    assert "chance and turned: 1 pair of 5 cells" in capsys.readouterr().out
    assert main([str(tmp_path / "absent")]) == 2


@pytest.mark.parametrize("name", ["arc-agi-1"])
def test_a_public_set_is_named_as_in_a_config(name: str, capsys) -> None:
    assert main([name]) == 0
    assert "arc-agi-1: 800 tasks, 3500 pairs, 797 groups, 3 of more than one task" in capsys.readouterr().out
