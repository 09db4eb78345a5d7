import pytest
import torch

from tests import oracles
from tiny_onn.learning_cost import (
    LayerCost,
    TokenCost,
    aggregated,
    learning_cost,
    learning_cost_names,
    metric_only,
    per_token_gradients,
)

TOKEN_ARMS = ["per_token", "per_token_einsum", "per_token_vmap", "per_token_function"]


@pytest.mark.parametrize("arm", TOKEN_ARMS)
@pytest.mark.parametrize("shape", [(6, 5, 4), (1, 3, 7), (130, 2, 3)])
def test_token_costs_equal_the_norm_of_the_whole_gradient(arm: str, shape: tuple[int, int, int]) -> None:
    n, i, o = shape
    torch.manual_seed(n)
    g, x = torch.randn(n, o, dtype=torch.float64), torch.randn(n, i, dtype=torch.float64)
    g[0] = 0
    cost = learning_cost(arm)
    assert isinstance(cost, TokenCost)
    torch.testing.assert_close(cost.measure(g, x), oracles.token_costs(g, x), rtol=1e-12, atol=1e-15)


def test_layer_costs_by_hand() -> None:
    gradient = torch.tensor([[3.0, -4.0], [0.0, 2.0]])
    assert aggregated(gradient).tolist() == [5.0, 2.0]
    assert metric_only(gradient).tolist() == [3.5, 1.0]
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


def my_cost(grad_output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return grad_output.abs()


MINE = TokenCost(my_cost)


def test_an_arm_of_ones_own() -> None:
    assert learning_cost("tests.tiny_onn.test_learning_cost:MINE").measure is my_cost
    for name, message in [
        ("nonesuch", "there are per_token"),
        ("json:loads", "expected a TokenCost"),
        ("no:x", "No mod"),
    ]:
        with pytest.raises(ValueError, match=message):
            learning_cost(name)
    assert {"per_token", "aggregated", "metric_only", "none"} <= set(learning_cost_names())
