import pytest

from pipeline.data.arc import load_corpus
from pipeline.data.augment import View, view_task
from pipeline.data.related import leakage
from pipeline.data.split import hold_out
from pipeline.data.task import Task
from pipeline.errors import UserError
from pipeline.settings.config import DataConfig
from tests.pipeline.arc_samples import random_task

TASKS = [random_task(f"t{i:02d}", i, side=8) for i in range(20)]


def test_each_task_is_on_one_side_and_the_part_is_met():
    train, held = hold_out(TASKS, 0.2, seed=0)
    assert len(held) == 4
    assert sorted(t.task_id for t in train + held) == [t.task_id for t in TASKS]


def test_the_choice_depends_on_the_seed_and_not_on_the_order():
    def chosen(tasks, seed):
        return {task.task_id for task in hold_out(tasks, 0.3, seed)[1]}

    assert chosen(TASKS, 1) == chosen(TASKS[::-1], 1)
    assert len({frozenset(chosen(TASKS, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("seed", range(10))
def test_tasks_that_share_a_pair_stay_together(seed):
    # A chain: 0-1 and 1-2 share, so 0 and 2 belong together although they share nothing.
    first, second, third, *rest = TASKS[:8]
    chain = [
        first,
        Task(second.task_id, (first.train[0], third.train[0]), second.test),
        third,
    ]
    train, held = hold_out([*chain, *rest], 0.4, seed)
    assert len({t.task_id for t in chain} & {t.task_id for t in held}) in (0, 3)
    assert leakage(train, held) == []
    assert held
    assert train


def test_too_few_independent_tasks_are_refused():
    with pytest.raises(UserError, match="all 1 tasks are related"):
        hold_out(TASKS[:1], 0.5, 0)
    copies = [Task(name, TASKS[0].train, TASKS[0].test) for name in "abc"]
    with pytest.raises(UserError, match="all 3 tasks are related"):
        hold_out(copies, 0.5, 0)
    assert sorted(len(part) for part in hold_out([*copies, TASKS[1]], 0.9, 0)) == [1, 3]
    assert [len(part) for part in hold_out([*copies, TASKS[1]], 0.1, 0)] == [3, 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "view", [View(2), View(5), View(0, (0, 3, 1, 2, *range(4, 10))), View(3, tuple(range(10))[::-1])]
)
def test_turned_and_recoloured_copies_stay_with_their_original(seed, view):
    copies = [view_task(Task(f"copy of {t.task_id}", t.train, t.test), view) for t in TASKS[:12]]
    train, held = hold_out([*TASKS[:12], *copies], 0.3, seed)
    sides = [{t.task_id.removeprefix("copy of ") for t in side} for side in (train, held)]
    assert sides[0].isdisjoint(sides[1])
    assert all(sides)


def test_two_tasks_of_arc_agi_2_that_mirror_alike_are_never_cut_apart():
    """8be77c9e mirrors downwards and c9e6f938 to the right: one pair of theirs is the same, turned and recoloured."""
    tasks = {task.task_id: task for task in load_corpus(DataConfig()).train}
    two = [tasks["8be77c9e"], tasks["c9e6f938"]]
    assert leakage(two[:1], two[1:]) == [("8be77c9e", "c9e6f938")]
    for seed in range(8):
        for side in hold_out([*two, *TASKS[:4]], 0.4, seed):
            assert len({task.task_id for task in side} & {"8be77c9e", "c9e6f938"}) in (0, 2)


@pytest.mark.parametrize("seed", range(5))
def test_tasks_for_selection_are_none_of_the_tests(seed):
    train, test = hold_out(TASKS, 0.2, seed)
    others, selection = hold_out(TASKS, 0.2, seed, "selection")
    assert len(selection) == len(test)
    assert not {t.task_id for t in test} & {t.task_id for t in [*others, *selection]}
    assert {t.task_id for t in others} | {t.task_id for t in selection} == {t.task_id for t in train}


def test_of_two_groups_nothing_is_left_to_select_by():
    with pytest.raises(UserError, match="so none can be held out"):
        hold_out(TASKS[:2], 0.5, 0, "selection")
