"""Paired differences against values worked by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reporting.columns import HELD_OUT_LOSS
from pipeline.reporting.statistics import (
    MOST_EXACT,
    chance_of,
    holm,
    least_p,
    mean,
    paired_difference,
    seeds_needed,
    sign_flip_p,
    signed,
)


def test_what_rounds_to_zero_has_no_minus() -> None:
    assert [signed(value, 2) for value in (-0.004, -0.0, 0.004, -0.006, 1.0)] == [
        "+0.00",
        "+0.00",
        "+0.00",
        "-0.01",
        "+1.00",
    ]
    assert HELD_OUT_LOSS.show(-1e-9) == "0.0000"
    assert HELD_OUT_LOSS.show(-1e-9, sign=True) == "+0.0000"
    assert HELD_OUT_LOSS.show(-0.25) == "-0.2500"


def test_pairs_by_seed_and_leaves_the_unpaired_out():
    effect = paired_difference({0: 3.0, 1: 5.0, 7: 100.0}, {1: 4.0, 0: 1.0, 2: 9.0})
    assert effect is not None
    assert effect.values == {0: 2.0, 1: 1.0}
    assert effect.mean == 1.5
    assert effect.agree
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_of_two_differences_the_interval_is_from_one_to_the_other():
    # A resample of two draws the mean of (a, a), (a, b) or (b, b): a quarter of them lie at either end.
    effect = paired_difference({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0})
    assert effect is not None
    assert effect.interval == (1.0, 3.0)
    assert effect.excludes_zero


def test_of_three_the_ends_are_the_extremes_since_each_has_more_than_a_fortieth():
    # (1/3)^3 = 1/27 > 0.025: the lowest and highest resample are within the interval.
    effect = paired_difference({0: -1.0, 1: 2.0, 2: 5.0}, dict.fromkeys(range(3), 0.0))
    assert effect is not None
    assert effect.interval == (-1.0, 5.0)
    assert not effect.excludes_zero
    assert not effect.agree


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
    effect, moved = paired_difference(values, zero), paired_difference({k: v + shift for k, v in values.items()}, zero)
    assert effect is not None
    assert effect.interval is not None
    low, high = effect.interval
    assert min(numbers) - 1e-9 <= low <= effect.mean + 1e-9
    assert effect.mean - 1e-9 <= high <= max(numbers) + 1e-9
    assert moved is not None
    assert moved.interval == pytest.approx((low + shift, high + shift), abs=1e-9)


def test_the_sign_flip_test_by_hand():
    # Of the eight ways to sign 1, 2, 3 two have a mean as far from 0 as theirs; of 1, 1, -1 every way has.
    assert sign_flip_p({0: 1.0, 1: 2.0, 2: 3.0}) == pytest.approx(2 / 8)
    assert sign_flip_p({0: 1.0, 1: 1.0, 2: -1.0}) == pytest.approx(1.0)
    assert sign_flip_p({seed: 1.0 + seed for seed in range(5)}) == pytest.approx(least_p(5)) == pytest.approx(2 / 32)
    assert sign_flip_p({0: 0.0, 1: 0.0}) == 1.0
    assert math.isnan(sign_flip_p({0: 1.0}))
    assert math.isnan(sign_flip_p({0: 1.0, 1: math.nan}))


def test_the_sign_flip_test_is_exact_for_as_many_seeds_as_it_says():
    numbers = [0.3, 1.9, -0.8, 0.7, 1.1, -0.2, 0.9, 0.4, -1.3, 0.6, 1.2, -0.5, 0.8, 1.7, 0.1, -0.9]
    assert len(numbers) == MOST_EXACT
    signs = np.array(list(itertools.product((1, -1), repeat=len(numbers))))
    as_far = np.abs(signs @ numbers) >= sum(numbers) - 1e-9
    assert sign_flip_p(dict(enumerate(numbers))) == pytest.approx(as_far.mean(), rel=1e-12)


def test_holm_by_hand():
    adjusted = holm([0.01, 0.04, math.nan, 0.03])  # 3 x 0.01, 2 x 0.03, and 0.04, which may not be below the one before
    assert adjusted[:2] + adjusted[3:] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(adjusted[2])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_seeds_needed_is_where_the_least_p_value_passes():
    for comparisons in (1, 2, 9, 24):
        needed = seeds_needed(comparisons)
        assert least_p(needed) * comparisons <= 0.05 < least_p(needed - 1) * comparisons


@pytest.mark.parametrize("seeds", [2, 5, 6, 8])
def test_the_chance_of_a_small_p_value_is_that_over_all_draws_of_the_signs(seeds):
    sizes = [1.1**seed for seed in range(seeds)]
    drawn = [
        sign_flip_p({seed: sign * size for seed, (sign, size) in enumerate(zip(signs, sizes, strict=True))})
        for signs in itertools.product((1, -1), repeat=seeds)
    ]
    assert chance_of(0.05, seeds) == pytest.approx(sum(p <= 0.05 for p in drawn) / len(drawn))
