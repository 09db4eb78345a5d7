"""The baselines' envelope and the excess over it: against definitions, by hand, and paired by seed."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reporting.frontier import (
    envelope,
    envelopes,
    equally_dense,
    excesses,
    group_of,
    mean_envelope,
)
from pipeline.reporting.results import Results, Row, TrialResult
from tests import oracles

NAN = math.nan
POINTS = st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.5, 3.0)), min_size=1, max_size=8)


def trial(arm: str, seed: int, density: float, loss: float, **params: str) -> TrialResult:
    metrics = {"held_out/density": density, "held_out/loss": loss}
    return TrialResult(f"{arm}-{seed}-{density}-{params}", arm, seed, params, {}, metrics, {})


def sweep(*trials: TrialResult, varying: tuple[str, ...] = ()) -> Results:
    rows: dict = {}
    for each in trials:
        cell = tuple((name, each.params.get(name, "–")) for name in varying)
        rows.setdefault((each.arm, cell), Row(each.arm, cell)).trials[each.seed] = each
    return Results("x", list(rows.values()), {"FINISHED": len(trials)}, 0, list(varying))


@given(POINTS, st.floats(0.01, 1.0))
def test_the_envelope_is_its_slow_twin(points: list[tuple[float, float]], density: float) -> None:
    curve = envelope(points)
    assert curve is not None
    low, high = min(d for d, _ in points), max(d for d, _ in points)
    if low <= density <= high:
        assert curve.at(density) == pytest.approx(oracles.envelope(points, density), rel=1e-12)
    elif density < low / 1.03 or density > high * 1.03:
        assert math.isnan(curve.at(density))


@given(POINTS)
def test_no_baseline_lies_below_it_and_it_never_rises(points: list[tuple[float, float]]) -> None:
    curve = envelope(points)
    assert curve is not None
    assert all(curve.at(d) <= loss + 1e-12 for d, loss in points)
    along = [curve.at(d) for d in sorted(d for d, _ in points)]
    assert all(later <= sooner + 1e-12 for sooner, later in itertools.pairwise(along))


def test_it_is_linear_in_the_logarithm_of_density_and_constant_after_its_best_point() -> None:
    curve = envelope([(0.04, 1.7), (0.16, 1.5), (0.32, 1.6), (0.05, 1.9), (NAN, 1.0), (0.1, NAN), (0.0, 1.0)])
    assert curve is not None
    assert curve.points == ((0.04, 1.7), (0.16, 1.5))
    assert curve.at(0.08) == pytest.approx(1.6)  # half-way from 4 to 16 %
    assert curve.at(0.3) == 1.5  # a denser baseline that is worse does not raise it
    assert curve.at(0.0396) == 1.7  # within 2 % of its end
    assert math.isnan(curve.at(0.039))
    assert math.isnan(curve.at(0.33))
    assert math.isnan(curve.at(NAN))
    assert envelope([(NAN, 1.0)]) is None


def test_the_excess_is_paired_by_seed_and_empty_where_no_baseline_is() -> None:
    results = sweep(
        *(trial("top_k", seed, 0.05, 2.0 + seed) for seed in (0, 1)),
        *(trial("dense", seed, 1.0, 1.0 + seed) for seed in (0, 1)),
        trial("mine", 0, 0.05, 2.1),
        trial("mine", 1, 0.05, 2.9),
        trial("mine", 2, 0.05, 2.9),  # no baseline has this seed
        trial("sparser", 0, 0.02, 2.0),
        trial("diverged", 0, 0.05, NAN),
    )
    by_run = excesses(results)
    mine = next(row for row in results.rows if row.arm == "mine")
    assert {s: by_run[t.run_id] for s, t in mine.trials.items()} == pytest.approx(
        {0: 0.1, 1: -0.1, 2: NAN}, nan_ok=True
    )
    for arm, expected in (("sparser", NAN), ("diverged", math.inf)):
        (alone,) = next(row for row in results.rows if row.arm == arm).trials.values()
        assert by_run[alone.run_id] == pytest.approx(expected, nan_ok=True)
    on_it = [by_run[t.run_id] for row in results.rows if row.arm in ("top_k", "dense") for t in row.trials.values()]
    assert on_it == [0.0] * 4


def test_densities_and_rates_are_pooled_but_not_what_any_arm_could_reach() -> None:
    names = ("model.density", "training.router_learning_rate", "training.steps")

    def of(arm: str, density: float, loss: float, rate: str, steps: str) -> TrialResult:
        values = {names[0]: str(density), names[1]: rate, names[2]: steps}
        return trial(arm, 0, density, loss, **values)

    results = sweep(
        of("top_k", 0.05, 2.0, "0.001", "200"),
        of("top_k", 0.05, 1.9, "0.01", "200"),
        of("top_k", 0.5, 1.5, "0.001", "200"),
        of("top_k", 0.05, 1.4, "0.001", "600"),
        of("mine", 0.05, 1.95, "0.001", "200"),
        varying=names,
    )
    assert {group: curve.points for (group, _), curve in envelopes(results).items()} == {
        (("training.steps", "200"),): ((0.05, 1.9), (0.5, 1.5)),
        (("training.steps", "600"),): ((0.05, 1.4),),
    }
    (mine,) = results.rows[-1].trials.values()
    assert group_of(mine, names) == (("training.steps", "200"),)
    assert excesses(results)[mine.run_id] == pytest.approx(0.05)


def test_the_mean_envelope_is_drawn_where_all_seeds_have_one() -> None:
    first, second = envelope([(0.04, 2.0), (1.0, 1.0)]), envelope([(0.1, 3.0), (0.5, 2.0)])
    assert first
    assert second
    densities, losses = mean_envelope({0: first, 1: second}, points=5)
    assert (densities[0], densities[-1]) == pytest.approx((0.1, 0.5))
    assert losses[0] == pytest.approx((first.at(0.1) + 3.0) / 2)
    assert mean_envelope({}) == ([], [])


def test_densities_within_a_tenth_are_equal() -> None:
    assert equally_dense([0.05, 0.055])
    assert not equally_dense([0.05, 0.056])
    assert not equally_dense([0.05, NAN])


def test_runs_without_the_held_out_density_use_the_last_activation_rate_of_the_layers() -> None:
    rates = {"activation_rate/L0": ([1], [0.2]), "activation_rate/L1": ([1], [0.4])}
    old = TrialResult("r", "a", 0, {}, {}, {name: values[-1] for name, (_, values) in rates.items()}, rates)
    assert old.density == pytest.approx(0.3)
    assert trial("a", 0, 0.07, 1.0).density == 0.07
