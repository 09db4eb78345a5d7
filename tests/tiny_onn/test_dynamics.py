import math
import pickle

import pytest
import torch
from torch import Tensor

from tests import oracles
from tests.tiny_onn.helpers import all_gradients, batch, loss_sum, new_dynamics, router_gradients_of, small_model, step
from tiny_onn.capture import capture
from tiny_onn.dynamics import DynamicsReport, NonFiniteStep
from tiny_onn.layers import computation_parameters, router_parameters, sparse_layers
from tiny_onn.learning_cost import COSTS, WeightState
from tiny_onn.signals import GOODNESS, Moment, token_signals

ARMS = ["per_token", "aggregated", "metric_only"]


def slow_router_gradients(arm: str, tokens: Tensor, valid: Tensor) -> tuple[list[Tensor], float]:
    """By the oracles: capture with clones, Goodness token by token, autograd through the definition."""
    model = small_model(arm)
    gradients, losses = [], []
    with capture(model, valid=valid, storage="clone") as captured:
        total, count = loss_sum(model, tokens, valid)
        (total / count).backward()
        for call in captured.calls():
            layer, mask = call.module, valid.flatten()
            x, o, g = (t.flatten(0, 1)[mask] for t in (call.x, call.masked_output, call.grad_output))
            if arm == "per_token":
                g = oracles.without_noise(g * count)
                good = oracles.goodness(o.abs(), g.abs(), oracles.token_costs(g, x))
            else:
                weight = layer.mu_weight.grad
                cost = weight.norm(dim=1) if arm == "aggregated" else weight.abs().mean(dim=1)
                good = oracles.goodness(o.norm(dim=0), g.norm(dim=0), cost)
            P, G = (p.detach().clone().requires_grad_(True) for p in (layer.proto_weight, layer.gate_param))
            logits = layer.gain * (x @ P.T / math.sqrt(x.shape[1]) - oracles.mas(x @ G.T))
            loss = oracles.meta_loss(logits, good.detach().expand_as(logits)).mean()
            gradients += torch.autograd.grad(loss, [P, G])
            losses.append(float(loss.detach()))
    return [g / len(losses) for g in gradients], sum(losses) / len(losses)


@pytest.mark.parametrize("arm", ARMS)
def test_router_gradients_equal_the_oracle(arm: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(4), 3, 6)
    truth, _ = slow_router_gradients(arm, tokens, valid)
    gradients = router_gradients_of(new_dynamics(small_model(arm), arm), tokens, valid)
    assert max(float(t.abs().max()) for t in truth) > 1e-4
    for a, b in zip(gradients, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arm", ARMS)
def test_the_meta_loss_is_the_oracles(arm: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(5), 3, 6)
    report = step(new_dynamics(small_model(arm), arm), tokens, valid)
    assert float(report.meta_loss) == pytest.approx(slow_router_gradients(arm, tokens, valid)[1], rel=1e-10)


@pytest.mark.parametrize("arm", ARMS)
def test_each_loss_moves_its_own_stream_only(arm: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(6), 3, 6)
    plain, meta = small_model(arm, router_learns_from_task=False), small_model(arm)
    plain_dynamics = new_dynamics(plain, "task_only")  # whose layers keep the task loss from P and G
    step(plain_dynamics, tokens, valid)
    dynamics = new_dynamics(meta, arm)
    router_before = [p.detach().clone() for p in router_parameters(meta)]
    step(dynamics, tokens, valid)
    for a, b in zip(router_parameters(plain), router_before, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(computation_parameters(plain), computation_parameters(meta), strict=True):
        assert torch.equal(a, b)  # the meta-loss changed nothing of the computation stream
    assert all(not torch.equal(a, b) for a, b in zip(router_parameters(meta), router_before, strict=True))


@pytest.mark.parametrize("arm", ARMS)
def test_padding_counts_nowhere(arm: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(7), 3, 6)
    wider = torch.nn.functional.pad(tokens, (0, 4))
    gradients = router_gradients_of(new_dynamics(small_model(arm), arm), tokens, valid)
    padded = router_gradients_of(new_dynamics(small_model(arm), arm), wider, torch.nn.functional.pad(valid, (0, 4)))
    for a, b in zip(gradients, padded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("arm", ARMS)
def test_the_order_of_the_rows_does_not_matter(arm: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(8), 4, 6)
    order = torch.tensor([2, 0, 3, 1])
    gradients = router_gradients_of(new_dynamics(small_model(arm), arm), tokens, valid)
    turned = router_gradients_of(new_dynamics(small_model(arm), arm), tokens[order], valid[order])
    for a, b in zip(gradients, turned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("arm", ARMS)
def test_accumulating_two_batches_equals_one_of_both(arm: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(9), 4, 6)
    whole = router_gradients_of(new_dynamics(small_model(arm), arm), tokens, valid)
    dynamics, seen = new_dynamics(small_model(arm), arm), []
    dynamics.computation_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    dynamics.router_optimizer.step = lambda: seen.extend(p.grad.clone() for p in router_parameters(dynamics.model))
    count = int(valid[:, 1:].sum())
    with dynamics.watch(labels=count) as engine:
        losses = []
        for rows in (slice(0, 1), slice(1, 4)):
            engine.use_valid(valid[rows])
            losses.append(loss_sum(dynamics.model, tokens[rows], valid[rows])[0] / count)
        losses[0].backward()
        dynamics.compute_and_apply_gradients(losses[1], engine)
    for a, b in zip(seen, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_clipping_bounds_the_computation_stream_alone() -> None:
    tokens, valid = batch(torch.Generator().manual_seed(2), 3, 6)
    router: list[list[Tensor]] = []
    norms: list[float] = []
    for clip in (1e9, 1e-3):
        dynamics = new_dynamics(small_model(), "per_token", clip_norm=clip)
        dynamics.computation_optimizer.step = lambda: norms.append(  # type: ignore[method-assign, assignment]
            math.sqrt(sum(float(p.grad.square().sum()) for p in computation_parameters(dynamics.model)))  # noqa: B023
        )
        dynamics.router_optimizer.step = lambda: router.append(  # type: ignore[method-assign, assignment]
            [p.grad.clone() for p in router_parameters(dynamics.model)]  # noqa: B023
        )
        report = step(dynamics, tokens, valid)
        assert float(report.gradient_norm) == pytest.approx(norms[0], rel=1e-9)
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(*router, strict=True))


@pytest.mark.parametrize("engine", ["hooks", "fused"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing_and_says_what_it_saw(engine: str, bad: float) -> None:
    model = small_model()
    before = [p.detach().clone() for p in model.parameters()]
    tokens, valid = batch(torch.Generator().manual_seed(2), 3, 6)
    dynamics = new_dynamics(model, "per_token", engine=engine)
    with dynamics.watch(valid, labels=1, observe=True) as opened:
        total, _ = loss_sum(model, tokens, valid)
        with pytest.raises(NonFiniteStep, match="non-finite task loss") as caught:
            dynamics.compute_and_apply_gradients(total * bad, opened)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not dynamics.computation_optimizer.state
    assert caught.value.parameters[0] == "head.bias"  # whose gradient is the first of the backward pass
    assert not caught.value.report.task_loss.isfinite()
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301, as Ray sends it
    assert again.quantities == caught.value.quantities


@pytest.mark.parametrize("engine", ["hooks", "fused"])
def test_a_router_gradient_alone_stops_a_step_and_is_named(engine: str) -> None:
    model = small_model()
    dynamics = new_dynamics(model, "per_token", engine=engine)
    tokens, valid = batch(torch.Generator().manual_seed(2), 3, 6)
    name = "blocks.1.attention.k.gate_param"
    count = int(valid[:, 1:].sum())
    with dynamics.watch(valid, labels=count) as opened:
        finish = opened.finish

        def finish_badly(task_loss: Tensor) -> tuple[Tensor, Tensor]:
            losses = finish(task_loss)
            model.get_parameter(name).grad[0, 0] = math.inf
            return losses

        opened.finish = finish_badly  # type: ignore[method-assign]
        total, _ = loss_sum(model, tokens, valid)
        with pytest.raises(NonFiniteStep) as caught:
            dynamics.compute_and_apply_gradients(total / count, opened)
    assert caught.value.quantities == ("router gradient norm",)
    assert caught.value.parameters == (name,)
    assert not dynamics.router_optimizer.state


def test_health_is_reported_for_every_module_where_asked() -> None:
    tokens, valid = batch(torch.Generator().manual_seed(3), 3, 6)
    for arm in (*ARMS, "none"):
        dynamics = new_dynamics(small_model(arm), arm)
        assert step(dynamics, tokens, valid).health is None
        health = step(dynamics, tokens, valid, observe=True).health
        assert list(health) == list(sparse_layers(dynamics.model))
        for each in health.values():
            assert each.scalars[0] == valid.sum()
            assert math.isnan(each.measures()["fraction_good"]) == (arm == "none")


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize(
    ("arm", "engine"),
    [
        *((arm, "hooks") for arm in (*ARMS, "per_token_einsum", "per_token_vmap", "per_token_function", "none")),
        *((arm, "fused") for arm in ("per_token", "fisher", "none")),
    ],
)
def test_a_worker_without_a_valid_token_takes_part(arm: str, engine: str, observe: bool) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(2), 3, 6)
    dynamics, nothing = new_dynamics(small_model(arm), arm, engine=engine), torch.zeros_like(valid)
    reports: list[DynamicsReport] = []

    def run() -> DynamicsReport:
        with dynamics.watch(nothing, labels=1, tokens=0, observe=observe) as opened:
            total, labels = loss_sum(dynamics.model, tokens, nothing)
            assert labels == 0
            reports.append(dynamics.compute_and_apply_gradients(total, opened))
        return reports[0]

    gradients = all_gradients(dynamics, run)
    assert len(gradients) == len(list(dynamics.model.parameters()))
    assert not any(gradient.any() for gradient in gradients.values())  # nor NaN, which is not 0 either
    assert float(reports[0].task_loss) == 0
    assert float(reports[0].meta_loss) == 0 or arm == "none"
    if observe:
        assert all(math.isnan(each.measures()["activation_rate"]) for each in reports[0].health.values())


@pytest.mark.parametrize("arm", ["per_token", "aggregated"])
def test_the_hooks_let_go_of_a_calls_tensors_once_they_are_made_use_of(arm: str) -> None:
    """A cost for each token needs nothing after a call's gradient; one for the layer, x and routing until the end."""
    tokens, valid = batch(torch.Generator().manual_seed(2), 3, 6)
    dynamics = new_dynamics(small_model(arm), arm)
    with dynamics.watch(valid, labels=1) as opened:
        total, _ = loss_sum(dynamics.model, tokens, valid)
        total.backward()
        calls = list(opened._captured._calls)
        assert len(calls) == 8
        for call in calls:
            assert call.grad_output is None
            assert not call.masked_output.numel()
            assert [call.x.numel() > 0, call.routing.match.numel() > 0] == [arm == "aggregated"] * 2
            assert (call.routing.gate is not None) == (arm == "aggregated")
        opened.finish(total)
        assert not any(tensor.numel() for call in calls for tensor in (call.x, call.routing.match))
        assert not any(call.routing.gate is not None for call in calls)


def test_a_gradient_near_nothing_is_no_signal() -> None:
    g = torch.tensor([[1.0, 2.0], [3e-6, 1e-17]], dtype=torch.float64)
    ones = torch.ones(2, 2, dtype=torch.float64)
    signals = token_signals(GOODNESS, COSTS["per_token"], Moment(ones, ones, g), WeightState(ones))  # type: ignore[arg-type]
    assert signals.goodness[0].all()
    assert not signals.goodness[1].any()
