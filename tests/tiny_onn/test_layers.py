import pytest
import torch

from tests import oracles
from tests.tiny_onn.helpers import small_model
from tiny_onn.capture import capture
from tiny_onn.layers import SparseProtoLinear, computation_parameters, router_parameters


def random_layer(inputs: int, outputs: int, gain: float = 1.7) -> SparseProtoLinear:
    torch.manual_seed(3)
    layer = SparseProtoLinear(inputs, outputs, gain=gain, gate_parameter="zero").double()
    torch.nn.init.normal_(layer.gate_param)
    torch.nn.init.normal_(layer.mu_bias)
    return layer


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 5), (5, 4), (3, 6)])
def test_a_layer_is_its_definition_token_by_token(inputs: int, outputs: int) -> None:
    layer = random_layer(inputs, outputs)
    x = torch.randn(2, 3, inputs, dtype=torch.float64)
    truth = oracles.sparse_proto_linear(
        x.flatten(0, 1), layer.mu_weight, layer.mu_bias, layer.proto_weight, layer.gate_param, 1.7, inputs == outputs
    )
    torch.testing.assert_close(layer(x).flatten(0, 1), truth["masked"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        layer.routing(x, learn=True).logits().flatten(0, 1), truth["logits"], rtol=1e-12, atol=1e-12
    )


def test_residual_needs_a_square_layer() -> None:
    assert SparseProtoLinear(4, 4).residual
    assert not SparseProtoLinear(4, 3).residual
    with pytest.raises(ValueError, match="found 4 and 3"):
        SparseProtoLinear(4, 3, residual=True)


def test_initialisation_is_the_designs() -> None:
    torch.manual_seed(0)
    layer = SparseProtoLinear(100, 80, gate_parameter="zero")
    for weight in (layer.mu_weight, layer.proto_weight):
        # Kaiming-uniform with a = sqrt 5 is uniform on +-1/sqrt(I): standard deviation 1/sqrt(3 I).
        assert weight.abs().max() <= 0.1
        assert float(weight.detach().std()) == pytest.approx((1 / 300) ** 0.5, rel=0.05)
    assert not layer.mu_bias.any()
    assert not layer.gate_param.any()


def test_a_gate_of_zeros_gets_no_gradient() -> None:
    """A property of the definition: relu'(0) = 0, so mas(x G^T) is flat at G = 0 and no loss can move it."""
    layer = SparseProtoLinear(5, 4, gate_parameter="zero").double()
    x = torch.randn(3, 5, dtype=torch.float64)
    layer.routing(x, learn=True).logits().square().sum().backward()
    assert not layer.gate_param.grad.any()
    assert layer.proto_weight.grad.any()


def test_the_task_loss_leaves_the_router_alone_but_flows_through_the_routing_weights() -> None:
    layer = random_layer(5, 5)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    assert layer.proto_weight.grad is None
    assert layer.gate_param.grad is None
    assert layer.mu_weight.grad.any()
    # The gradient of x is that of the whole definition, with P and G constant.
    x2 = x.detach().clone().requires_grad_(True)
    truth = oracles.sparse_proto_linear(
        x2, *(p.detach() for p in (layer.mu_weight, layer.mu_bias, layer.proto_weight, layer.gate_param)), 1.7, True
    )
    truth["masked"].square().sum().backward()
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-11, atol=1e-12)


def test_the_control_arm_trains_the_router_by_the_task_loss() -> None:
    layer = SparseProtoLinear(5, 5, router_learns_from_task=True).double()
    layer(torch.randn(4, 5, dtype=torch.float64)).square().sum().backward()
    assert layer.proto_weight.grad.any()


def test_every_parameter_is_in_exactly_one_stream() -> None:
    model = small_model()
    router, computation = router_parameters(model), computation_parameters(model)
    assert {id(p) for p in router}.isdisjoint(id(p) for p in computation)
    assert len(router) + len(computation) == len(list(model.parameters()))
    assert len(router) == 2 * 8


def test_padding_does_not_change_a_row() -> None:
    model = small_model()
    tokens = torch.tensor([[1, 2, 3, 4]])
    longer = torch.tensor([[1, 2, 3, 4, 0, 0, 0], [6, 5, 4, 3, 2, 1, 1]])
    short, long = model(tokens, tokens % 5, tokens % 5), model(longer, longer % 5, longer % 5)
    torch.testing.assert_close(long[:1, :4], short, rtol=1e-12, atol=1e-12)


def test_the_call_point_costs_nothing_without_an_observer() -> None:
    layer = random_layer(5, 4)
    with capture(layer):
        pass
    assert not layer.call_point._forward_hooks
