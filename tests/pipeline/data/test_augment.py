import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.augment import IDENTITY, View, colouring, inverse, view_grid, view_task, views
from pipeline.data.task import grid_of
from pipeline.settings.config import DataConfig
from tests.pipeline.arc_samples import grids, tasks

VIEWS = st.builds(View, st.integers(0, 7), st.permutations(range(1, 10)).map(lambda rest: (0, *rest)))
CROOKED = grid_of([[1, 2, 3], [4, 5, 6]])


@given(grids(), VIEWS)
def test_the_inverse_undoes_a_view(grid, view):
    np.testing.assert_array_equal(view_grid(view_grid(grid, view), inverse(view)), grid)
    np.testing.assert_array_equal(view_grid(view_grid(grid, inverse(view)), view), grid)


def test_views_worked_by_hand():
    assert view_grid(CROOKED, View(0)).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert view_grid(CROOKED, View(1)).tolist() == [[3, 6], [2, 5], [1, 4]]
    assert view_grid(CROOKED, View(4)).tolist() == [[1, 4], [2, 5], [3, 6]]
    assert view_grid(grid_of([[0, 3]]), View(0, (0, 2, 1, 9, 4, 5, 6, 7, 8, 3))).tolist() == [[0, 9]]


def test_the_eight_symmetries_are_a_group():
    images = [view_grid(CROOKED, View(d)) for d in range(8)]
    assert len({image.tobytes() + bytes(image.shape) for image in images}) == 8
    orders = []
    for d in range(8):
        image, order = view_grid(CROOKED, View(d)), 1
        while not np.array_equal(image, CROOKED):
            image, order = view_grid(image, View(d)), order + 1
        orders.append(order)
        assert View(d).transposes == (images[d].shape != CROOKED.shape)
        for e in range(8):
            assert any(np.array_equal(view_grid(images[d], View(e)), image) for image in images)
    assert orders == [1, 4, 2, 4, 2, 2, 2, 2]


def test_views_of_a_task_begin_with_itself_and_do_not_depend_on_their_number():
    few = views("abc", DataConfig(dihedral_views=2, colour_permutations=2, seed=5))
    many = views("abc", DataConfig(dihedral_views=8, colour_permutations=3, seed=5))
    assert few[0] == many[0] == IDENTITY
    assert (len(few), len(many)) == (4, 24)
    assert set(few) <= set(many)
    assert len(set(many)) == 24
    assert all(view.colours == IDENTITY.colours for view in many[:8])


def test_a_colouring_is_a_permutation_that_its_key_decides():
    one = colouring(1, "task", 2, 3)
    assert one == colouring(1, "task", 2, 3)
    assert sorted(one) == list(range(10))
    assert one[0] == 0
    others = {colouring(2, "task", 2, 3), colouring(1, "other", 2, 3), colouring(1, "task", 3, 3)}
    assert len(others | {one}) == 4


@given(tasks(), VIEWS)
def test_all_grids_of_a_task_are_seen_alike(task, view):
    seen = view_task(task, view)
    assert len(seen.train) == len(task.train)
    for mine, theirs in zip(seen.pairs, task.pairs, strict=True):
        np.testing.assert_array_equal(mine.input, view_grid(theirs.input, view))
        np.testing.assert_array_equal(mine.output, view_grid(theirs.output, view))
