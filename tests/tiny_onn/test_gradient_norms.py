"""Norms of captured weight gradients: per token, per sequence and per layer, against whole gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests import oracles
from tests.tiny_onn.test_capture_linear import Chain, inputs
from tiny_onn.capture import CaptureError, capture
from tiny_onn.gradient_norms import gradient_norms


def frobenius(matrix: Tensor) -> float:
    return math.sqrt(sum(float(each) ** 2 for each in matrix.flatten()))


def slow_norms(gradients: Tensor, per: str, batch_axis: int = 0) -> Tensor:
    """From whole gradients [b, s, o, i] or [s, b, o, i], one by one."""
    if per == "layer":
        return torch.tensor(frobenius(gradients.sum(dim=(0, 1))), dtype=torch.float64)
    if per == "sequence":
        return torch.tensor(
            [frobenius(each.sum(dim=0)) for each in gradients.movedim(batch_axis, 0)], dtype=torch.float64
        )
    return torch.tensor([[frobenius(each) for each in row] for row in gradients], dtype=torch.float64)


@pytest.mark.parametrize("per", ["token", "sequence", "layer"])
@pytest.mark.parametrize(("shape", "batch_axis"), [((4, 3), 0), ((3, 4), 1), ((2, 9), 0), ((9, 2), 1)])
def test_norms_are_those_of_whole_gradients(per: str, shape: tuple[int, int], batch_axis: int) -> None:
    """With 3 tokens a sequence the inner products are fewer than the gradient's 20 numbers, with 9 they are more."""
    model, x = Chain(), inputs(*shape)
    valid = torch.arange(shape[0] * shape[1]).reshape(shape) % 4 != 1

    def loss() -> Tensor:
        return model(x)[valid].square().sum()

    with capture(model, layers=(nn.Linear,), valid=valid) as captured:
        loss().backward()
        by_layer = captured.norms(per, batch_axis=batch_axis)
    assert list(by_layer) == ["first", "second"]
    for name, norms in by_layer.items():
        layer = model.get_submodule(name)
        whole = oracles.own_weight_gradients(layer, layer.weight, layer.bias, loss)
        torch.testing.assert_close(norms, slow_norms(whole, per, batch_axis), rtol=1e-10, atol=1e-12)


def test_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=True, dtype=torch.float64)
    x = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]).double()
    g = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]).double()
    with capture(layer, layers=(nn.Linear,)) as captured:
        (layer(x) * g).sum().backward()
        (call,) = captured.calls()
        assert captured.norms("token")[""].tolist() == [[5.0, 2.0]]
        # the sum of the two is [[3, 4], [0, 2]]
        assert captured.norms("sequence")[""].tolist() == [pytest.approx(math.sqrt(29))]
        assert float(gradient_norms([call], "layer")) == pytest.approx(math.sqrt(29))
        # with the bias's gradients, [1, 0] and [0, 2]
        assert captured.norms("token", bias=True)[""].tolist() == [
            [pytest.approx(math.sqrt(26)), pytest.approx(8**0.5)]
        ]
        assert captured.norms("sequence", bias=True)[""].tolist() == [pytest.approx(math.sqrt(34))]


def test_the_whole_layers_norm_is_that_of_autograds_gradient_with_the_bias_too() -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        for size in (2, 3):
            model(inputs(size, 3)).square().sum().backward()
        by_layer = captured.norms("layer", bias=True)
    for name, norm in by_layer.items():
        layer = model.get_submodule(name)
        both = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)
        torch.testing.assert_close(norm, both.norm(), rtol=1e-11, atol=0)


class Shared(Chain):
    """Its first layer is called twice on the same tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.tanh(self.first(x)))


@pytest.mark.parametrize("per", ["token", "sequence", "layer"])
def test_calls_on_the_same_tokens_are_summed_and_micro_batches_follow_each_other(per: str) -> None:
    model, parts = Shared(), (inputs(2, 3), inputs(4, 3) * 0.7)
    with capture(model, layers=(nn.Linear,)) as captured:
        for part in parts:
            model(part).square().sum().backward()
        computed = captured.norms(per)["first"]
    whole = torch.cat(
        [
            oracles.own_weight_gradients(
                model.first, model.first.weight, model.first.bias, lambda part=part: model(part).square().sum()
            )
            for part in parts
        ]
    )
    torch.testing.assert_close(computed, slow_norms(whole, per), rtol=1e-10, atol=1e-12)


def of_which_pass(model: nn.Module, x: Tensor) -> Tensor:
    return model.second(model.first(torch.tanh(model.first(x))))


def test_calls_whose_tokens_are_not_known_are_an_error() -> None:
    model = Chain()
    with capture(model, layers=("first",)) as captured:
        of_which_pass(model, inputs(2, 3)).square().sum().backward()
        with pytest.raises(
            CaptureError, match="call 0 of 'first': cannot tell which calls of this layer had the same tokens"
        ):
            captured.norms("token")
        assert captured.norms("layer")["first"] > 0
        assert gradient_norms(captured.calls(), "token").shape == (2, 3)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda calls: gradient_norms([], "token"), "found none"),
        (lambda calls: gradient_norms(calls[:1], "sequence", batch_axis=2), "batch_axis: found 2"),
        (lambda calls: gradient_norms(calls[:1], "sequence", batch_axis=-1), "batch_axis: found -1"),
        (lambda calls: gradient_norms(calls, "token"), "of one layer on the same tokens"),
    ],
)
def test_what_has_no_norms_is_refused(run: Callable[[list], object], said: str) -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        model(inputs(2, 3)).square().sum().backward()
        with pytest.raises((ValueError, CaptureError), match=said):
            run(captured.calls())


def test_before_backward_there_are_none() -> None:
    model = Chain()
    with capture(model, layers=(nn.Linear,)) as captured:
        loss = model(inputs(2, 3)).square().sum()
        with pytest.raises(CaptureError, match=r"backward\(\) has not run"):
            captured.norms()
        loss.backward()
        assert captured.norms()["first"].shape == (2, 3)
