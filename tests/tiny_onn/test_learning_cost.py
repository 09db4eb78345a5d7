import pytest
import torch

from tests import oracles
from tiny_onn.learning_cost import (
    COSTS,
    LayerCost,
    TokenCost,
    WeightState,
    aggregated,
    learning_cost,
    metric_max,
    metric_only,
    per_token_gradients,
)

TOKEN_ARMS = ["per_token", "per_token_einsum", "per_token_vmap", "per_token_function"]


@pytest.mark.parametrize("arm", TOKEN_ARMS)
@pytest.mark.parametrize("shape", [(6, 5, 4), (1, 3, 7), (130, 2, 3), (0, 2, 3)])
def test_token_costs_equal_the_norm_of_the_whole_gradient(arm: str, shape: tuple[int, int, int]) -> None:
    n, i, o = shape
    torch.manual_seed(n)
    g, x = torch.randn(n, o, dtype=torch.float64), torch.randn(n, i, dtype=torch.float64)
    g[:1] = 0
    cost = learning_cost(arm)
    assert isinstance(cost, TokenCost)
    torch.testing.assert_close(
        cost.measure(g, x, WeightState(torch.zeros(o, i).double())), oracles.token_costs(g, x), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("shape", [(6, 5, 4), (1, 3, 7)])
def test_relative_and_fisher_equal_their_definitions(shape: tuple[int, int, int]) -> None:
    n, i, o = shape
    torch.manual_seed(n)
    g, x = torch.randn(n, o, dtype=torch.float64), torch.randn(n, i, dtype=torch.float64)
    weight = WeightState(torch.randn(o, i, dtype=torch.float64), torch.rand(o, i, dtype=torch.float64))
    relative, fisher = learning_cost("relative"), learning_cost("fisher")
    assert isinstance(relative, TokenCost)
    assert isinstance(fisher, TokenCost)
    torch.testing.assert_close(
        relative.measure(g, x, weight), oracles.relative_costs(g, x, weight.weight), rtol=1e-12, atol=1e-15
    )
    torch.testing.assert_close(
        fisher.measure(g, x, weight), oracles.fisher_costs(g, x, weight.second_moment), rtol=1e-12, atol=1e-15
    )


def test_relative_and_fisher_by_hand() -> None:
    g, x = torch.tensor([[2.0, -1.0]]), torch.tensor([[3.0, 4.0]])
    weight = WeightState(torch.tensor([[0.0, 5.0], [0.6, 0.8]]), torch.tensor([[1.0, 1.0], [9.0, 16.0]]))
    assert learning_cost("relative").measure(g, x, weight).tolist() == [[2.0, 5.0]]  # 2*5/5 and 1*5/1
    # 2 sqrt(9 + 16) and sqrt(9/3 + 16/4)
    assert learning_cost("fisher").measure(g, x, weight)[0].tolist() == pytest.approx([10.0, 7**0.5])


def test_unlike_per_token_relative_and_fisher_distinguish_experts() -> None:
    """C / |g| is the same for all experts of a token in per_token (docs/decision-record.md), not in the others."""
    torch.manual_seed(0)
    g, x = torch.randn(3, 4).double(), torch.randn(3, 5).double()
    weight = WeightState(torch.randn(4, 5).double(), torch.rand(4, 5).double())
    for arm, differs in (("per_token", False), ("relative", True), ("fisher", True)):
        ratio = learning_cost(arm).measure(g, x, weight) / g.abs()
        assert bool((ratio.std(dim=-1) > 1e-3).all()) == differs


def test_layer_costs_by_hand() -> None:
    gradient = torch.tensor([[3.0, -4.0], [0.0, 2.0]])
    assert aggregated(gradient).tolist() == [5.0, 2.0]
    assert metric_only(gradient).tolist() == [3.5, 1.0]
    assert metric_max(gradient).tolist() == [4.0, 2.0]
    assert isinstance(learning_cost("aggregated"), LayerCost)
    assert learning_cost("none") is None


def test_full_gradients_on_request() -> None:
    g, x = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    gradients = per_token_gradients(g, x)
    whole = torch.einsum("bso,bsi->bsoi", g, x).flatten(0, 1)
    assert len(gradients) == 6
    torch.testing.assert_close(gradients[:], whole)
    torch.testing.assert_close(gradients[4], whole[4])
    torch.testing.assert_close(torch.cat(list(gradients.chunks(4))), whole)
    torch.testing.assert_close(gradients.sum(), whole.sum(dim=0))
    torch.testing.assert_close(gradients.norms(), whole.norm(dim=-1), rtol=1e-12, atol=0)


def my_cost(grad_output: torch.Tensor, x: torch.Tensor, weight: WeightState) -> torch.Tensor:
    return grad_output.abs()


MINE = TokenCost(my_cost)


def test_an_arm_of_ones_own() -> None:
    assert learning_cost("tests.tiny_onn.test_learning_cost:MINE").measure is my_cost
    for name, message in [
        ("nonesuch", "there are per_token"),
        ("json:loads", "expected one of TokenCost"),
        ("no:x", "No mod"),
    ]:
        with pytest.raises(ValueError, match=message):
            learning_cost(name)
    assert learning_cost("none") is None
    assert {"per_token", "aggregated", "metric_only"} <= set(COSTS)
