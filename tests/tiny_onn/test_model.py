"""The transformer against its definition, and what RoPE is for."""

import pytest
import torch
from torch import Tensor

from tests import oracles
from tests.tiny_onn.helpers import VOCABULARY, small_model
from tiny_onn.layers import SparseProtoLinear
from tiny_onn.model import GridTransformer, rotate, rotation


def _projected(layer: SparseProtoLinear, x: Tensor) -> Tensor:
    parameters = layer.mu_weight, layer.mu_bias, layer.proto_weight, layer.gate_param
    return oracles.sparse_proto_linear(x, *(p.detach() for p in parameters), layer.gain, layer.residual)["masked"]


def _logits(model: GridTransformer, tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of one sequence, by the oracles."""
    state = {name: value.detach() for name, value in model.named_parameters()}
    x = torch.stack(
        [
            state["token_embedding.weight"][token]
            + state["row_embedding.weight"][row]
            + state["column_embedding.weight"][column]
            for token, row, column in zip(tokens, rows, columns, strict=True)
        ]
    )
    for place, block in enumerate(model.blocks):
        normed = oracles.layer_norm(x, state[f"blocks.{place}.norm.weight"], state[f"blocks.{place}.norm.bias"])
        q, k, v = (_projected(getattr(block.attention, name), normed) for name in "qkv")
        x = x + _projected(block.attention.o, oracles.attention(q, k, v, model.heads))
    normed = oracles.layer_norm(x, state["norm.weight"], state["norm.bias"])
    return torch.stack([state["head.weight"] @ token + state["head.bias"] for token in normed])


def test_the_transformer_is_its_definition_position_by_position() -> None:
    model = small_model()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(VOCABULARY, (2, 6), generator=generator)
    rows, columns = (torch.randint(5, (2, 6), generator=generator) for _ in range(2))
    logits = model(tokens, rows, columns)
    for sequence in range(2):
        truth = _logits(model, tokens[sequence], rows[sequence], columns[sequence])
        torch.testing.assert_close(logits[sequence], truth, rtol=1e-10, atol=1e-11)  # rounding of sums of 12 terms


def test_after_rope_a_product_depends_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)

    def product(at: int, other: int) -> float:
        turned = (
            rotate(v.expand(1, 1, 1, 6), rotation(torch.tensor([[place]]), 6, torch.float64))
            for v, place in ((q, at), (k, other))
        )
        return float(torch.stack(list(turned)).prod(dim=0).sum())

    assert product(9, 2) == pytest.approx(product(107, 100), rel=1e-12)
    assert product(2, 9) != pytest.approx(product(9, 2), rel=1e-3)
    assert product(0, 0) == pytest.approx(float(q @ k), rel=1e-12)


def test_a_width_that_heads_cannot_share_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden=10 cannot be cut into 2 heads of even width"):
        GridTransformer(vocabulary=3, coordinates=3, hidden=10, layers=1, heads=2)
