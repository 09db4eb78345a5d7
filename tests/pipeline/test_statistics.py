"""Paired differences against values worked by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics import mean, paired_difference


def test_pairs_by_seed_and_leaves_the_unpaired_out():
    found = paired_difference({0: 3.0, 1: 5.0, 7: 100.0}, {1: 4.0, 0: 1.0, 2: 9.0})
    assert found is not None
    assert found.values == {0: 2.0, 1: 1.0}
    assert found.mean == 1.5
    assert found.agree
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_of_two_differences_the_interval_is_from_one_to_the_other():
    # A resample of two draws the mean of (a, a), (a, b) or (b, b): a quarter of them lie at either end.
    found = paired_difference({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0})
    assert found is not None
    assert found.interval == (1.0, 3.0)
    assert found.excludes_zero


def test_of_three_the_ends_are_the_extremes_since_each_has_more_than_a_fortieth():
    # (1/3)^3 = 1/27 > 0.025: the lowest and highest resample are within the interval.
    found = paired_difference({0: -1.0, 1: 2.0, 2: 5.0}, dict.fromkeys(range(3), 0.0))
    assert found is not None
    assert found.interval == (-1.0, 5.0)
    assert not found.excludes_zero
    assert not found.agree


def test_one_seed_has_no_interval_and_nan_no_mean():
    one = paired_difference({0: 1.0}, {0: 3.0})
    assert one is not None
    assert (one.mean, one.interval, one.excludes_zero) == (-2.0, None, False)
    broken = paired_difference({0: 1.0, 1: math.nan}, {0: 0.0, 1: 0.0})
    assert broken is not None
    assert math.isnan(broken.mean)
    assert broken.interval is None
    assert not broken.excludes_zero


def test_mean_does_not_drop_a_diverged_seed():
    assert mean({0: 1.0, 1: 2.0, 2: 6.0}) == 3.0
    assert math.isnan(mean({0: 1.0, 1: math.nan}))
    assert math.isnan(mean({0: 1.0, 1: math.inf}))
    assert math.isnan(mean({}))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6), st.floats(-1e3, 1e3))
def test_interval_holds_the_mean_lies_within_the_values_and_moves_with_them(numbers, shift):
    values = dict(enumerate(numbers))
    zero = dict.fromkeys(values, 0.0)
    found, moved = paired_difference(values, zero), paired_difference({k: v + shift for k, v in values.items()}, zero)
    assert found is not None
    assert found.interval is not None
    low, high = found.interval
    assert min(numbers) - 1e-9 <= low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= high <= max(numbers) + 1e-9
    assert moved is not None
    assert moved.interval == pytest.approx((low + shift, high + shift), abs=1e-9)
