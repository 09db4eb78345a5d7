"""A learning cost of one's own that breaks its contract is told before anything is trained with it."""

import pytest
import torch
from torch import Tensor

from tiny_onn.cost_contract import cost_problem, twin_of
from tiny_onn.learning_cost import COSTS, LayerCost, LearningCost, TokenCost, WeightState, learning_cost
from tiny_onn.signals import GOODNESS, Moment, layer_signals, token_signals


def raises(grad_output: Tensor, x: Tensor, weight: WeightState) -> Tensor:
    raise RuntimeError("no such thing")


RAISES = TokenCost(raises)
BROKEN = {
    "raised RuntimeError: no such thing, for grad_output [5, 3], x [5, 7], weight [3, 7]; expected float32": RAISES,
    "raised TypeError: <lambda>() takes 2 positional": TokenCost(lambda g, x: g.abs()),  # type: ignore[misc, arg-type]
    "returned a float for grad_output [5, 3]": TokenCost(lambda g, x, w: 1.0),  # type: ignore[arg-type, return-value]
    "returned float32 [5, 1] for grad_output [5, 3], x [5, 7], weight [3, 7]; expected float32 [5, 3], one cost for "
    "each token and expert": TokenCost(lambda g, x, w: x.norm(dim=-1, keepdim=True)),
    "returned float64 [5, 3]": TokenCost(lambda g, x, w: g.abs().double()),
    "returned negative values (lowest -": TokenCost(lambda g, x, w: g),
    "returned values that are not finite": TokenCost(lambda g, x, w: g.abs().log().abs()),
    "changed x in place": TokenCost(lambda g, x, w: g.abs() * x.abs_().sum(-1, keepdim=True)),
    "changed weight in place": TokenCost(lambda g, x, w: g.abs() * w.weight.abs_().sum(-1)),
    "for grad_output [0, 3], x [0, 7]": TokenCost(lambda g, x, w: g.abs() / g.abs().amax()),
    "is there for a TokenCost(..., needs_second_moment=True)": TokenCost(
        lambda g, x, w: g.abs() * w.second_moment.sum(-1)  # type: ignore[union-attr]
    ),
    "returned float32 [3, 7] for weight_gradient [3, 7]; expected float32 [3], one cost for each expert": LayerCost(
        lambda gradient: gradient.abs()
    ),
    "not finite for weight_gradient [3, 7], where some gradients are exactly 0": LayerCost(
        lambda gradient: gradient.norm(dim=-1) / gradient.abs().sum(dim=-1)
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_an_error_of_a_cost_names_what_was_expected(message: str) -> None:
    assert message in str(cost_problem(BROKEN[message]))


@pytest.mark.parametrize("arm", sorted(COSTS))
def test_the_arms_that_come_with_the_package_keep_the_contract(arm: str) -> None:
    cost = learning_cost(arm)
    assert cost is not None
    assert cost_problem(cost) is None


def test_a_cost_that_breaks_its_contract_is_no_arm_and_one_that_keeps_it_is() -> None:
    with pytest.raises(ValueError, match=r"learning cost '.*_contract:RAISES' raised RuntimeError: no such"):
        learning_cost("tests.tiny_onn.test_cost_contract:RAISES")
    hybrids = [learning_cost(f"experiments.study.hybrids:{name}") for name in ("SUMMED_COST", "NO_COST")]
    assert all(isinstance(cost, TokenCost) for cost in hybrids)


def test_trying_a_cost_draws_nothing_and_works_where_a_model_without_values_is_built() -> None:
    random = TokenCost(lambda g, x, w: torch.rand(g.shape))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert cost_problem(random) is None
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    with torch.device("meta"):
        assert cost_problem(random) is None


@pytest.mark.parametrize("shape", [(4, 1), (3,)])
def test_a_cost_that_would_be_broadcast_is_refused_in_training(shape: tuple[int, ...]) -> None:
    x, g = torch.rand(4, 2), torch.rand(4, 3)
    cost: LearningCost = TokenCost(lambda *_: torch.ones(shape))
    with pytest.raises(ValueError, match=r"the learning cost has shape .*; expected \[4, 3\]"):
        token_signals(GOODNESS, cost, Moment(x, g, g), WeightState(torch.rand(3, 2)))
    layer = LayerCost(lambda gradient: gradient.abs().mean())
    with pytest.raises(ValueError, match=r"the learning cost has shape \[\]; expected \[3\]"):
        layer_signals({"a": (torch.rand(3), torch.rand(3))}, {"a": torch.rand(3, 2)}, layer)


def test_a_cost_that_is_another_arm_in_disguise_is_recognised() -> None:
    """A factor that all experts of a token share cancels in mas(C)."""
    for twin, disguised in (
        ("per_token", lambda g, x, w: g.abs() * x.abs().sum(-1, keepdim=True)),
        ("per_token", lambda g, x, w: 3 * g.abs()),
        ("relative", lambda g, x, w: g.abs() / (w.weight.norm(dim=-1) + 1e-9)),
        (None, lambda g, x, w: g.abs() * (x.abs() @ w.weight.abs().T)),
        (None, lambda g, x, w: torch.ones_like(g)),
    ):
        assert twin_of(TokenCost(disguised)) == twin  # type: ignore[arg-type]
    assert all(twin_of(cost) is None for cost in COSTS.values())
    assert twin_of(LayerCost(lambda gradient: gradient.abs().mean(dim=-1))) is None
