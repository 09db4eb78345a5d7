"""The study's own learning costs, against loops in float64."""

import pytest
import torch

from experiments.study.hybrids import NO_COST, SUMMED_COST
from tests import oracles
from tiny_onn.learning_cost import WeightState, learning_cost
from tiny_onn.signals import GOODNESS, Moment, token_signals


@pytest.fixture
def call() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return tuple(torch.randn(7, width, dtype=torch.float64) for width in (4, 5, 4))


def test_the_summed_cost_is_that_of_the_weight_gradient(call) -> None:
    grad_output, x, _ = call
    cost = SUMMED_COST.measure(grad_output, x, WeightState(torch.zeros(4, 5)))
    for o in range(4):
        row = torch.zeros(5, dtype=torch.float64)
        for n in range(7):
            row += grad_output[n, o] * x[n]
        assert torch.allclose(cost[:, o], row.square().sum().sqrt().expand(7), rtol=1e-12)  # rounding of a sum of 7


def test_without_a_cost_goodness_is_contribution_times_relevance(call) -> None:
    grad_output, x, masked_output = call
    signals = token_signals(
        GOODNESS, NO_COST, Moment(x, masked_output, grad_output), WeightState(torch.zeros(4, 5))
    ).goodness
    for n in range(7):
        product = oracles.mas(masked_output[n].abs()) * oracles.mas(grad_output[n].abs())
        assert torch.allclose(signals[n], oracles.mas(product), rtol=1e-8)  # EPS beside a cost of 1


def test_the_arms_are_found_by_the_names_that_the_study_uses() -> None:
    assert learning_cost("experiments.study.hybrids:SUMMED_COST") is SUMMED_COST
    assert learning_cost("experiments.study.hybrids:NO_COST") is NO_COST
