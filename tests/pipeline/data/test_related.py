"""Which tasks are related: the canonical form of a pair against a search over all symmetries and recolourings."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.augment import View, view_grid, view_task
from pipeline.data.related import LARGE, canonical_form, leakage, marks, related_groups
from pipeline.data.task import Pair, Task, grid_of
from tests.pipeline.arc_samples import pairs, random_task, tasks

VIEWS = st.builds(View, st.integers(0, 7), st.permutations(range(10)).map(tuple))


def seen(pair: Pair, view: View) -> Pair:
    return Pair(view_grid(pair.input, view), view_grid(pair.output, view))


def equal_in_some_view(one: Pair, other: Pair) -> bool:
    """The slow twin: some symmetry and some permutation of the colours make one pair the other."""
    for dihedral in range(8):
        turned = seen(one, View(dihedral))
        if (turned.input.shape, turned.output.shape) != (other.input.shape, other.output.shape):
            continue
        cells = zip([*turned.input.flat, *turned.output.flat], [*other.input.flat, *other.output.flat], strict=True)
        become = set(cells)
        if len(become) == len({a for a, _ in become}) == len({b for _, b in become}):
            return True
    return False


def pair_of(given: list[list[int]], answer: list[list[int]]) -> Pair:
    return Pair(grid_of(given), grid_of(answer))


@given(pairs(), VIEWS)
def test_every_view_of_a_pair_has_its_form(pair, view):
    assert canonical_form(seen(pair, view)) == canonical_form(pair)


# Few colours and sides, so that equal forms are not rare.
_FEW = st.lists(st.integers(0, 2), min_size=4, max_size=4)


@given(_FEW, _FEW, _FEW, _FEW, st.booleans())
def test_pairs_of_equal_form_are_views_of_each_other_and_no_others(a, b, c, d, flat):
    shape = (1, 4) if flat else (2, 2)
    one, other = (pair_of(np.reshape(given, shape), np.reshape(answer, (2, 2))) for given, answer in ((a, b), (c, d)))
    assert (canonical_form(one) == canonical_form(other)) == equal_in_some_view(one, other)


def test_all_512_pairs_of_one_size_fall_into_the_orbits_that_burnside_counts():
    """1x3 -> 1x3 in two colours: the group of a mirror image (and its trivial copies) and the exchange of colours."""
    forms = {
        canonical_form(pair_of([list(cells[:3])], [list(cells[3:])])) for cells in itertools.product((0, 1), repeat=6)
    }
    # Fixed points: identity 64; exchange 0; mirror 2^2 * 2^2 = 16; mirror and exchange 0 (the middle cell). 80 / 4.
    assert len(forms) == 20


def test_input_and_output_are_turned_and_recoloured_together():
    flip = pair_of([[1, 2, 3]], [[3, 2, 1]])
    stay = pair_of([[1, 2, 3]], [[1, 2, 3]])
    other_colours = pair_of([[1, 2, 3]], [[4, 5, 6]])
    assert len({canonical_form(pair) for pair in (flip, stay, other_colours)}) == 3
    assert canonical_form(pair_of([[7], [0], [5]], [[5], [0], [7]])) == canonical_form(flip)


@given(tasks(), VIEWS)
def test_every_view_of_a_task_has_its_marks(task, view):
    assert marks(view_task(task, view)) == marks(task)


BIG = pair_of([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[0, 0, 0, 1, 2], [0, 0, 3, 4, 5]])  # 20 cells
SMALL = [pair_of([[0, 1, 2, n]], [[n, n, 1]]) for n in range(3, 5)] + [pair_of([[0, 1, 1]], [[1]])]


def test_one_large_pair_relates_two_tasks_and_one_small_pair_does_not():
    assert BIG.input.size + BIG.output.size == LARGE
    assert canonical_form(SMALL[0]) == canonical_form(SMALL[1])
    small, third, others = SMALL[0], SMALL[2], [random_task(f"o{i}", i).train for i in range(2)]
    for shared, related in (((BIG,), True), ((small,), False), ((small, small), False), ((small, third), True)):
        one = Task("one", (*others[0], *shared), (shared[0],))
        other = Task("other", (*shared, *others[1]), (others[1][0],))
        assert bool(marks(one) & marks(other)) == related
        assert leakage([one], [other]) == ([("one", "other")] if related else [])
        assert len(related_groups([one, other])) == 2 - related


def test_a_task_of_one_small_pair_is_related_to_its_own_copy():
    one, copy = (Task(name, (pair,), (pair,)) for name, pair in zip("ab", SMALL, strict=False))
    assert leakage([one], [copy]) == [("a", "b")]


def test_pairs_without_an_answer_relate_nothing():
    unknown = [Task(name, (BIG,), (Pair(SMALL[0].input, None),)) for name in "ab"]
    assert leakage(unknown[:1], unknown[1:]) == [("a", "b")]
    assert marks(Task("c", (), (Pair(BIG.input, None),))) == frozenset()


@pytest.mark.parametrize("many", [3, 90])
def test_many_small_pairs_are_compared_by_the_same_few_in_every_copy(many):
    draw = np.random.default_rng(0)
    small = tuple(
        Pair(grid_of(draw.integers(0, 10, (3, 3))), grid_of(draw.integers(0, 10, (2, 2)))) for _ in range(many)
    )
    one = Task("one", small, small[:1])
    turned = view_task(Task("turned", (*small[::-1], BIG), small[:1]), View(5, (1, 0, *range(2, 10))))
    assert leakage([one], [turned]) == [("one", "turned")]
    assert len(marks(one)) < 3_000


@given(st.lists(st.integers(0, 7), min_size=1, max_size=9))
def test_groups_are_the_connected_components(chosen):
    """Tasks made of links 0..7: task i shares links with others; the slow twin floods the graph."""
    links = [random_task(f"link{i}", 50 + i, side=6).train[0] for i in range(8)]
    links = [
        Pair(grid_of(np.full((4, 5), 0) + np.arange(20).reshape(4, 5) % (i + 2)), links[i].output) for i in range(8)
    ]
    made = [Task(f"t{i}", (links[n],), (links[(n * 3 + i) % 8],)) for i, n in enumerate(chosen)]
    left, expected = list(range(len(made))), set()
    while left:
        group, edge = {left[0]}, [left[0]]
        while edge:
            here = edge.pop()
            new = {other for other in left if marks(made[here]) & marks(made[other])} - group
            group |= new
            edge += new
        expected.add(frozenset(group))
        left = [each for each in left if each not in group]
    groups = {frozenset(made.index(task) for task in group) for group in related_groups(made)}
    assert groups == expected
