import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.tiny_onn.helpers import batch, loss_sum, small_model
from tiny_onn.capture import CaptureError, Storage, capture
from tiny_onn.layers import SparseProtoLinear, sparse_layers
from tiny_onn.learning_cost import per_token_gradients


class Chain(nn.Module):
    """x -> first -> second, with a hook for mischief in between."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = SparseProtoLinear(5, 5).double(), SparseProtoLinear(5, 4).double()
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def assert_summed_gradients_are_autograds(model: nn.Module, captured, expected_calls: int, rtol: float = 1e-11) -> None:
    """einsum('bso,bsi->oi', g, x) == W.grad, the calls of a module added up."""
    calls = captured.calls()
    assert len(calls) == expected_calls
    for name, layer in sparse_layers(model).items():
        mine = [c for c in calls if c.module_name == name]
        total = sum(per_token_gradients(c.grad_output.double(), c.x.double()).sum() for c in mine)
        torch.testing.assert_close(total, layer.mu_weight.grad.double(), rtol=rtol, atol=rtol)
        assert [c.call_index for c in mine] == list(range(len(mine)))


@pytest.mark.parametrize("storage", ["reference", "clone"])
def test_every_module_of_a_transformer(storage: Storage) -> None:
    model = small_model()
    tokens, valid = batch(torch.Generator().manual_seed(0), 3, 7)
    with capture(model, valid=valid, storage=storage) as captured:
        total, count = loss_sum(model, tokens, valid)
        (total / count).backward()
        assert_summed_gradients_are_autograds(model, captured, 8)
        names = {c.module_name for c in captured.calls()}
    assert names == {f"blocks.{layer}.attention.{p}" for layer in (0, 1) for p in "qkvo"}


def test_references_equal_clones() -> None:
    seen = {}
    for storage in ("reference", "clone"):
        model = Chain()
        with capture(model, storage=storage) as captured:
            model(inputs(2, 3)).square().sum().backward()
            seen[storage] = [
                (c.module_name, c.x.clone(), c.masked_output.clone(), c.grad_output.clone()) for c in captured.calls()
            ]
    for a, b in zip(seen["reference"], seen["clone"], strict=True):
        assert a[0] == b[0]
        for left, right in zip(a[1:], b[1:], strict=True):
            assert torch.equal(left, right)


def test_a_module_called_twice_in_one_forward_and_a_shared_module() -> None:
    model = Chain()
    model.alias = model.first  # type: ignore[assignment]
    with capture(model) as captured:
        x = inputs(2, 3)
        model.second(model.alias(model.first(x))).square().sum().backward()
        assert_summed_gradients_are_autograds(model, captured, 3)


def test_several_forwards_before_one_backward() -> None:
    model = Chain()
    with capture(model) as captured:
        losses = [model(inputs(size, 3)).square().sum() for size in (1, 4)]
        (losses[0] + 2 * losses[1]).backward()
        assert_summed_gradients_are_autograds(model, captured, 4)


def test_gradient_accumulation_with_a_mask_for_each_forward() -> None:
    model = Chain()
    with capture(model) as captured:
        for size in (2, 3):
            captured.use_valid(torch.arange(3).expand(size, 3) < 2)
            model(inputs(size, 3)).square().sum().backward()
        assert_summed_gradients_are_autograds(model, captured, 4)
        assert [c.select(c.x).shape for c in captured.calls()] == [(4, 5), (4, 5), (6, 5), (6, 5)]
        with pytest.raises(CaptureError, match=r"shape \(3, 3\), but 'first' was called with tokens of shape \(1, 3\)"):
            model(inputs(1, 3))


def test_two_backwards_through_one_call_add_up() -> None:
    model = Chain()
    with capture(model) as captured:
        loss = model(inputs(2, 3)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert_summed_gradients_are_autograds(model, captured, 2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    model = Chain()
    with capture(model) as captured:
        x = inputs(2, 3).requires_grad_(True)
        once = checkpoint(model.first, x, use_reentrant=reentrant)
        twice = checkpoint(model.first, once, use_reentrant=reentrant)
        checkpoint(model.second, twice, use_reentrant=reentrant).square().sum().backward()
        assert_summed_gradients_are_autograds(model, captured, 3)


def test_bfloat16_autocast() -> None:
    model = Chain().float()
    with capture(model) as captured:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(inputs(4, 3).float())
        out.float().square().sum().backward()
        # bfloat16 keeps 8 bits; the weight gradient is formed in it
        assert_summed_gradients_are_autograds(model, captured, 2, rtol=2e-2)
        assert [c.select(c.grad_output) for c in captured.calls()][1].dtype == torch.float32


def test_eval_mode_is_captured_and_no_grad_is_not() -> None:
    model = Chain().eval()
    with capture(model) as captured:
        with torch.no_grad():
            model(inputs(9, 3))
        model(inputs(2, 3)).square().sum().backward()
        assert_summed_gradients_are_autograds(model, captured, 2)


def test_hooks_are_removed_and_nothing_lives_on() -> None:
    model, kept = Chain(), []
    with capture(model) as captured:
        out = model(inputs(2, 3))
        out.square().sum().backward()
        record = captured.calls()[0]
        kept = [weakref.ref(t) for c in captured.calls() for t in (c.x, c.masked_output, c.grad_output)]
    del out
    gc.collect()
    assert all(ref() is None for ref in kept)
    assert record.grad_output is None
    assert not any(layer.call_point._forward_hooks for layer in sparse_layers(model).values())


def test_hooks_are_removed_after_an_exception_half_way() -> None:
    def fail(_: Tensor) -> Tensor:
        raise KeyError("half-way")

    model = Chain(fail)
    with pytest.raises(KeyError), capture(model) as captured:
        model(inputs(2, 3))
    assert not any(layer.call_point._forward_hooks for layer in sparse_layers(model).values())
    assert captured.calls() == []


def test_an_output_modified_in_place_is_an_error() -> None:
    model = Chain(lambda t: t.mul_(2.0))
    with capture(model) as captured:
        model(inputs(2, 3)).square().sum().backward()
        with pytest.raises(CaptureError, match="masked_output of call 0 of 'first' was modified in place"):
            captured.calls()


def test_an_output_modified_in_place_is_no_harm_to_clones() -> None:
    model, twin = Chain(lambda t: t.mul_(2.0)), Chain(lambda t: t * 2.0)
    outputs = []
    for each in (model, twin):
        with capture(each, storage="clone") as captured:
            each(inputs(2, 3)).square().sum().backward()
            assert_summed_gradients_are_autograds(each, captured, 2)
            outputs.append(captured.calls()[0].masked_output.clone())
    assert torch.equal(*outputs)  # as it was before it was doubled
    torch.testing.assert_close(model.first.mu_weight.grad, twin.first.mu_weight.grad)


def test_a_computation_output_modified_in_place_is_an_error() -> None:
    class Meddling(SparseProtoLinear):
        def forward(self, x: Tensor) -> Tensor:
            seen = []
            handle = self.call_point.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
            out = super().forward(x)
            handle.remove()
            seen[0].computation_output.add_(1.0)
            return out + seen[0].computation_output

    model = nn.Sequential(Meddling(5, 5).double())
    with capture(model):
        loss = model(inputs(2, 3)).sum()
        with pytest.raises(RuntimeError, match="modified"):
            loss.backward()


def test_a_call_without_gradient_is_an_error_that_names_it() -> None:
    model = Chain()
    with capture(model) as captured:
        model.second(inputs(2, 3))
        model(inputs(2, 3)).square().sum().backward()
        with pytest.raises(CaptureError, match="call 0 of 'second' got no gradient"):
            captured.calls()


def test_a_call_made_anew_for_a_checkpoint_that_gets_no_gradient_is_an_error() -> None:
    """Where the first forward is not recorded, that call is the only one, and nothing excuses it."""
    model = Chain()

    def drop_one(x: Tensor) -> Tensor:
        model.second(x)
        return model.first(x)

    with capture(model) as captured:
        checkpoint(drop_one, inputs(2, 3).requires_grad_(True), use_reentrant=True).square().sum().backward()
        with pytest.raises(CaptureError, match="call 0 of 'second' got no gradient"):
            captured.calls()


def test_before_backward_nothing_is_complete() -> None:
    model = Chain()
    with capture(model) as captured:
        model(inputs(1, 2))
        with pytest.raises(CaptureError, match=r"backward\(\) has not run"):
            captured.calls()
