"""What the single-pass engine asks of its calls, refuses, and leaves behind."""

import contextlib
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.tiny_onn.helpers import Chain, all_gradients, batch, new_dynamics, small_model, step
from tiny_onn.arm import as_arm
from tiny_onn.capture import CaptureError
from tiny_onn.dynamics import DynamicsReport, LearningDynamics
from tiny_onn.fused import fused_pass
from tiny_onn.layers import SparseProtoLinear, sparse_layers
from tiny_onn.learning_cost import learning_cost


def test_a_call_without_gradient_is_an_error_that_names_it() -> None:
    model = Chain()
    dynamics = new_dynamics(model, "per_token", engine="fused")
    before = [p.detach().clone() for p in model.parameters()]
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    with dynamics.watch(labels=6) as engine:
        model.second(x)
        with pytest.raises(CaptureError, match="1 of 2 calls of 'second' got no gradient"):
            dynamics.compute_and_apply_gradients(model(x).square().sum(), engine)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_step_in_which_no_layer_is_called_is_an_error() -> None:
    model = Chain()
    dynamics = new_dynamics(model, "per_token", engine="fused")
    elsewhere = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with dynamics.watch(labels=6) as engine, pytest.raises(CaptureError, match="no SparseProtoLinear was called"):
        dynamics.compute_and_apply_gradients(elsewhere.sum(), engine)


def test_an_input_modified_in_place_is_an_error() -> None:
    layer = SparseProtoLinear(5, 5)
    x = torch.randn(3, 5)
    with fused_pass(
        layer,
        as_arm(None),
        valid=None,
        tokens=None,
        labels=1,
        second_moments={},
        observe=False,
    ):
        out = layer(x)
        x.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_the_number_of_tokens_may_be_known_beforehand() -> None:
    tokens, valid = batch(torch.Generator().manual_seed(3), 3, 6)
    runs = []
    for known in (None, int(valid.sum()), valid.sum(), 2 * valid.sum()):  # the last: as many again on another worker
        dynamics, reports = new_dynamics(small_model(), "per_token", engine="fused"), []
        gradients = all_gradients(
            dynamics, lambda d=dynamics, k=known, r=reports: r.append(step(d, tokens, valid, tokens=k)) or r[0]
        )
        runs.append((float(reports[0].meta_loss), {n: g for n, g in gradients.items() if "proto" in n or "gate" in n}))
    (loss, router), *equal, (half, halves) = runs
    for other, gradients in [*equal, (2 * half, {name: 2 * g for name, g in halves.items()})]:
        assert other == pytest.approx(loss, rel=1e-12)
        for name, gradient in router.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-12, atol=0)


def test_on_leaving_every_layer_is_as_it_was() -> None:
    model = small_model()
    dynamics = new_dynamics(model, "per_token", engine="fused")
    with contextlib.suppress(KeyError), dynamics.watch(labels=1):
        assert all(layer.single_pass is not None for layer in sparse_layers(model).values())
        raise KeyError
    assert all(layer.single_pass is None for layer in sparse_layers(model).values())


def test_the_mask_must_fit() -> None:
    dynamics = new_dynamics(Chain(), "per_token", engine="fused")
    with (
        dynamics.watch(torch.ones(3, 3, dtype=torch.bool), labels=1),
        pytest.raises(CaptureError, match=r"shape \(3, 3\), but a layer was called with tokens of shape \(1, 3\)"),
    ):
        dynamics.model(torch.randn(1, 3, 5, dtype=torch.float64))


def test_what_cannot_be_fused_is_refused() -> None:
    with pytest.raises(ValueError, match="granularity 'layer'"):
        new_dynamics(small_model(), "aggregated", engine="fused")
    model = small_model()
    with pytest.raises(ValueError, match="Adam, AdamW, found SGD"):
        LearningDynamics(
            model,
            learning_cost("fisher"),
            torch.optim.SGD(model.parameters(), lr=0.1),
            torch.optim.SGD(model.parameters(), lr=0.1),
        )


def test_fisher_uses_adams_second_moment() -> None:
    tokens, valid = batch(torch.Generator().manual_seed(3), 3, 6)
    dynamics = new_dynamics(small_model(), "fisher", engine="fused")
    moments = dynamics._second_moments()
    assert not any(value.any() for value in moments.values())
    step(dynamics, tokens, valid)
    for name, value in dynamics._second_moments().items():
        layer = sparse_layers(dynamics.model)[name]
        assert value is dynamics.computation_optimizer.state[layer.mu_weight]["exp_avg_sq"]
        assert value.any()


def test_the_meta_loss_falls() -> None:
    dynamics = new_dynamics(small_model(), "per_token", engine="fused")
    dynamics.computation_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    tokens, valid = batch(torch.Generator().manual_seed(3), 4, 7)
    losses = [float(step(dynamics, tokens, valid).meta_loss) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert not math.isnan(losses[-1])


ENGINES = pytest.mark.parametrize("engine", ["hooks", "fused"])


def in_two_parts(engine: str, call: Callable[[Chain, Tensor], Tensor], backward_each: bool) -> dict[str, Tensor]:
    """Gradients of two micro-batches of unequal shape and mask."""
    generator = torch.Generator().manual_seed(4)
    model = Chain()
    dynamics = new_dynamics(model, "per_token", engine=engine)

    def run() -> DynamicsReport:
        losses = []
        with dynamics.watch(labels=6) as opened:
            for size, length in ((2, 3), (1, 4)):
                x = torch.randn(size, length, 5, dtype=torch.float64, generator=generator).requires_grad_(True)
                valid = torch.arange(length).expand(size, length) < 2
                opened.use_valid(valid)
                losses.append((call(model, x).square().sum(-1) * valid).sum() / 6)
                if backward_each and size == 2:
                    losses.pop().backward()
            return dynamics.compute_and_apply_gradients(torch.stack(losses).sum(), opened)

    return all_gradients(dynamics, run)


@ENGINES
@pytest.mark.parametrize("backward_each", [False, True])
def test_micro_batches_may_be_checkpointed(engine: str, backward_each: bool) -> None:
    truth = in_two_parts(engine, lambda model, x: model(x), backward_each)
    assert truth["first.proto_weight"].abs().max() > 1e-3
    for reentrant in (False, True) if backward_each else (False,):
        through = partial(checkpoint, use_reentrant=reentrant)
        gradients = in_two_parts(engine, through, backward_each)
        for name, value in truth.items():
            torch.testing.assert_close(gradients[name], value, rtol=1e-10, atol=1e-12)


@ENGINES
def test_a_recomputed_call_with_an_unknown_mask_is_refused(engine: str) -> None:
    with pytest.raises(CaptureError, match="which of their masks of valid tokens it had cannot be told"):
        in_two_parts(engine, partial(checkpoint, use_reentrant=True), False)


@ENGINES
@pytest.mark.parametrize("arm", ["per_token", "none"])
def test_a_frozen_router_gets_no_gradient_and_keeps_none_from_others(arm: str, engine: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(3), 3, 6)
    gradients = {}
    for frozen in (False, True):
        dynamics = new_dynamics(small_model(arm), arm, engine=engine)
        layer = next(iter(sparse_layers(dynamics.model).values()))
        layer.proto_weight.requires_grad_(not frozen)
        gradients[frozen] = all_gradients(dynamics, lambda d=dynamics: step(d, tokens, valid))
    (gone,) = gradients[False].keys() - gradients[True].keys()
    assert gone.endswith("q.proto_weight")
    for name, value in gradients[True].items():
        torch.testing.assert_close(value, gradients[False][name], rtol=1e-10, atol=1e-12)


@ENGINES
def test_in_the_control_a_layer_may_keep_the_task_loss_from_its_router(engine: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(3), 3, 6)
    model = small_model("task_only", router_learns_from_task=False)
    dynamics = new_dynamics(model, "none", engine=engine)
    gradients = all_gradients(dynamics, lambda: step(dynamics, tokens, valid))
    assert gradients
    assert not [name for name in gradients if "proto" in name or "gate" in name]


@ENGINES
def test_a_gradient_of_the_gradient_is_refused(engine: str) -> None:
    """The single pass would compute it from half of the graph, and the hooks see two gradients of each call."""
    dynamics = new_dynamics(Chain(), "per_token", engine=engine)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    with dynamics.watch(labels=6), pytest.raises(CaptureError, match="create_graph=True"):
        torch.autograd.grad(dynamics.model(x).sum(), x, create_graph=True)


@ENGINES
@pytest.mark.parametrize("attribute", ["proto_weight", "gate_param"])
def test_two_layers_may_not_share_a_router(engine: str, attribute: str) -> None:
    model = Chain()
    setattr(model.second, attribute, getattr(model.first, attribute))
    with pytest.raises(ValueError, match=f"'first' and 'second' share one {attribute}"):
        new_dynamics(model, "per_token", engine=engine)
