"""The choice of a learning rate for each arm."""

import pandas as pd
import pytest

from experiments.study.tuned import DENSITY, RATE, best, by_rate
from pipeline.errors import UserError


def trials(*rows: tuple[str, float, float, float, float]) -> pd.DataFrame:
    """Of (arm, rate, density wanted, density reached, loss)."""
    columns = ["arm", RATE, DENSITY, "density", "held_out_loss"]
    return pd.DataFrame([*rows], columns=columns).assign(seed=0).astype({RATE: str, DENSITY: str})


def test_the_best_rate_is_that_of_the_lowest_mean_over_the_densities():
    rates = by_rate(
        trials(
            ("top_k", 1e-3, 0.05, 0.05, 1.7),
            ("top_k", 1e-3, 0.2, 0.2, 1.6),
            ("top_k", 1e-2, 0.05, 0.05, 1.75),
            ("top_k", 1e-2, 0.2, 0.2, 1.5),
            ("dense", 1e-3, 0.05, 0.05, 1.2),
            ("dense", 1e-3, 0.2, 0.2, 1.2),
        )
    )
    assert rates.set_index(["arm", "rate"])["loss"].to_dict() == {
        ("top_k", 1e-3): pytest.approx(1.65),
        ("top_k", 1e-2): pytest.approx(1.625),
        ("dense", 1e-3): pytest.approx(1.2),
    }
    assert best(rates) == {"top_k": 1e-2, "dense": 1e-3}


def test_a_rate_that_was_not_run_at_every_density_is_left_out():
    rates = by_rate(
        trials(("top_k", 1e-3, 0.05, 0.05, 1.7), ("top_k", 1e-3, 0.2, 0.2, 1.6), ("top_k", 1e-2, 0.2, 0.2, 1.0))
    )
    assert best(rates) == {"top_k": 1e-3}


def test_a_lower_loss_at_another_density_is_not_better_unless_no_rate_reaches_it():
    rows = [("remoe", 1e-3, 0.05, 0.09, 1.6), ("remoe", 1e-2, 0.05, 0.055, 1.7)]
    assert best(by_rate(trials(*rows))) == {"remoe": 1e-2}
    assert best(by_rate(trials(rows[0]))) == {"remoe": 1e-3}


def test_results_of_another_sweep_are_refused():
    with pytest.raises(UserError, match="no column 'training\\.router"):
        by_rate(trials(("top_k", 1e-3, 0.05, 0.05, 1.7)).drop(columns=RATE))
