"""The single-pass engine's gradients and health against the hooks', which are tested against oracles elsewhere."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.tiny_onn.helpers import Chain, all_gradients, batch, loss_sum, new_dynamics, small_model, step
from tiny_onn.arm import arm as find_arm
from tiny_onn.arm import configure
from tiny_onn.dynamics import DynamicsReport, LearningDynamics
from tiny_onn.fused import Call, Leaves, Node, OfTheStep, Plan, constants_of
from tiny_onn.kernels import Kernels
from tiny_onn.layers import SparseProtoLinear, sparse_layers

ARMS = ["per_token", "relative", "fisher", "none"]


class Stack(nn.Module):
    """Layers of any widths, with nothing in between."""

    def __init__(self, widths: list[int], seed: int, gain: float, gate: float, learns: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(
            SparseProtoLinear(i, o, gain=gain, gate_parameter="zero", router_learns_from_task=learns or None).double()
            for i, o in itertools.pairwise(widths)
        )
        for layer in self.layers:
            nn.init.normal_(layer.gate_param, std=gate)
            nn.init.normal_(layer.mu_bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def assert_same(
    computed: dict[str, Tensor], truth: dict[str, Tensor], rtol: float = 1e-10, atol: float = 1e-12
) -> None:
    assert list(computed) == list(truth)
    for name, value in truth.items():
        torch.testing.assert_close(computed[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@given(
    st.sampled_from(ARMS),
    st.integers(0, 999),
    st.lists(st.integers(2, 9), min_size=2, max_size=4),
    st.sampled_from([1.0, 0.3, 4.0]),
    st.sampled_from([0.0, 0.3]),
    st.tuples(st.integers(1, 4), st.integers(1, 7)),
)
def test_it_equals_the_hooks_for_every_parameter(
    arm: str, seed: int, widths: list[int], gain: float, gate: float, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*size, widths[0], dtype=torch.float64, generator=generator)
    valid = torch.rand(size, generator=generator) < 0.8
    pull = torch.randn(*size, widths[-1], dtype=torch.float64, generator=generator) * valid[..., None]
    moments = [torch.rand(o, i, dtype=torch.float64, generator=generator) for i, o in itertools.pairwise(widths)]
    by_engine = {}
    for engine in ("hooks", "fused"):
        model = Stack(widths, seed, gain, gate, arm == "none")
        dynamics = new_dynamics(model, arm, engine=engine, clip_norm=1e9)
        for layer, moment in zip(sparse_layers(model).values(), moments, strict=True):
            dynamics.computation_optimizer.state[layer.mu_weight]["exp_avg_sq"] = moment
        reports: list[DynamicsReport] = []

        def run(dynamics: LearningDynamics = dynamics, reports: list[DynamicsReport] = reports) -> DynamicsReport:
            with dynamics.watch(valid, labels=3) as opened:
                loss = (dynamics.model(x.clone().requires_grad_(True)) * pull).sum() / 3
                reports.append(dynamics.compute_and_apply_gradients(loss, opened))
            return reports[0]

        gradients = all_gradients(dynamics, run)
        (report,) = reports
        by_engine[engine] = gradients, (float(report.task_loss), float(report.meta_loss), float(report.gradient_norm))
    assert_same(by_engine["fused"][0], by_engine["hooks"][0])
    assert by_engine["fused"][1] == pytest.approx(by_engine["hooks"][1], rel=1e-10, abs=1e-13, nan_ok=True)


@pytest.mark.parametrize("arm", ARMS)
def test_twenty_steps_of_either_engine_end_at_the_same_parameters(arm: str) -> None:
    ends = {}
    for engine in ("hooks", "fused"):
        dynamics = new_dynamics(small_model(arm), arm, engine=engine, rate=3e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            step(dynamics, *batch(generator, 5, 7))
        ends[engine] = {name: p.detach() for name, p in dynamics.model.named_parameters()}
    for name, value in ends["hooks"].items():
        torch.testing.assert_close(ends["fused"][name], value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("arm", ARMS)
def test_padding_counts_nowhere(arm: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(7), 3, 6)
    runs = []
    for wider in (0, 4):
        dynamics = new_dynamics(small_model(arm), arm, engine="fused")
        more, mask = nn.functional.pad(tokens, (0, wider)), nn.functional.pad(valid, (0, wider))
        runs.append(all_gradients(dynamics, lambda d=dynamics, t=more, v=mask: step(d, t, v)))
    assert_same(runs[1], runs[0], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("arm", ARMS)
def test_accumulating_two_batches_equals_one_of_both(arm: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(9), 4, 6)
    count = int(valid[:, 1:].sum())
    whole = new_dynamics(small_model(arm), arm, engine="fused")
    truth = all_gradients(whole, lambda: step(whole, tokens, valid))
    dynamics = new_dynamics(small_model(arm), arm, engine="fused")

    def in_two() -> DynamicsReport:
        with dynamics.watch(labels=count) as engine:
            losses = []
            for rows in (slice(0, 1), slice(1, 4)):
                engine.use_valid(valid[rows])
                losses.append(loss_sum(dynamics.model, tokens[rows], valid[rows])[0] / count)
            losses[0].backward()
            return dynamics.compute_and_apply_gradients(losses[1], engine)

    assert_same(all_gradients(dynamics, in_two), truth, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("through", ["plain", "reentrant", "saved"])
def test_a_module_called_twice_layers_without_residual_and_checkpointing(through: str) -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    by_engine = {}
    for engine, way in (("hooks", "plain"), ("fused", through)):
        dynamics = new_dynamics(Chain(), "per_token", engine=engine)

        def run(dynamics: LearningDynamics = dynamics, way: str = way) -> DynamicsReport:
            with dynamics.watch(labels=6) as opened:
                loss = dynamics.model(x.clone().requires_grad_(True), way).square().sum() / 6
                return dynamics.compute_and_apply_gradients(loss, opened)

        by_engine[engine] = all_gradients(dynamics, run)
    assert_same(by_engine["fused"], by_engine["hooks"])


def test_bfloat16_autocast() -> None:
    tokens, valid = batch(torch.Generator().manual_seed(3), 4, 7)
    by_engine = {}
    for engine in ("hooks", "fused"):
        dynamics = new_dynamics(small_model().float(), "per_token", engine=engine)

        def run(dynamics: LearningDynamics = dynamics) -> DynamicsReport:
            count = int(valid[:, 1:].sum())
            with dynamics.watch(valid, labels=count) as opened:
                with torch.autocast("cpu", torch.bfloat16):
                    total = loss_sum(dynamics.model, tokens, valid)[0]
                return dynamics.compute_and_apply_gradients(total / count, opened)

        by_engine[engine] = all_gradients(dynamics, run)
    largest = max(
        float(value.norm()) for name, value in by_engine["hooks"].items() if "proto" in name or "gate" in name
    )
    for name, value in by_engine["hooks"].items():
        assert by_engine["fused"][name].dtype == torch.float32
        # bfloat16 has 8 bits, and the two round at different places. Some router gradients are all but nothing here
        # (no token has a signal), so their errors are measured against the router's largest.
        assert float((by_engine["fused"][name] - value).norm()) < 1e-2 * float(value.norm()) + 1e-3 * largest, name


@pytest.mark.parametrize("engine", ["hooks", "fused"])
def test_autocast_leaves_float64_alone(engine: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(3), 4, 7)
    runs = []
    for enabled in (False, True):
        dynamics = new_dynamics(small_model(), "per_token", engine=engine)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            runs.append(all_gradients(dynamics, lambda d=dynamics: step(d, tokens, valid)))
    assert_same(runs[1], runs[0], rtol=0, atol=0)


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (5, 3)])
@pytest.mark.parametrize("arm", ["none", "per_token"])
def test_its_backward_is_the_derivative_of_its_forward(inputs: int, outputs: int, arm: str) -> None:
    """By finite differences: of all inputs in the control; with meta-learning, of all but P and G."""
    torch.manual_seed(5)
    layer = SparseProtoLinear(inputs, outputs, gain=1.3, gate_parameter="zero").double()
    nn.init.normal_(layer.gate_param)
    x = torch.randn(3, inputs, dtype=torch.float64, requires_grad=True)
    three = torch.tensor(3.0, dtype=torch.float64)
    tally, counts = torch.zeros(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    configure(layer, find_arm(arm))
    plan = Plan(constants_of(layer, find_arm(arm)), Kernels(), lambda: None, None)
    call, rest = Call(OfTheStep(counts, three, three, None, None), plan), (None, None, tally)
    weights = [p.detach().requires_grad_(arm == "none") for p in (layer.proto_weight, layer.gate_param)]

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return Node.apply(call, *Leaves(x, weight, bias, *weights, *rest))

    assert torch.autograd.gradcheck(forward, (x, layer.mu_weight, layer.mu_bias))
    if arm == "none":

        def router(prototypes: Tensor, gates: Tensor) -> Tensor:
            return Node.apply(call, *Leaves(x.detach(), layer.mu_weight, layer.mu_bias, prototypes, gates, *rest))

        assert torch.autograd.gradcheck(router, tuple(weights))


@pytest.mark.parametrize("arm", ARMS)
def test_routing_health_is_that_of_the_hooks(arm: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(3), 3, 6)
    seen, histograms = {}, {}
    for engine in ("hooks", "fused"):
        health = step(new_dynamics(small_model(arm), arm, engine=engine), tokens, valid, observe=True).health
        assert health is not None
        seen[engine] = {name: each.measures() for name, each in health.items()}
        histograms[engine] = torch.stack([torch.cat([each.costs, each.goodness]) for each in health.values()])
    assert list(seen["fused"]) == list(seen["hooks"])
    for name, measures in seen["hooks"].items():
        assert seen["fused"][name] == pytest.approx(measures, rel=1e-9, abs=1e-12, nan_ok=True)
    pairs = 2 * int(valid.sum()) * health[next(iter(health))].active.numel()  # by cost and by Goodness
    assert set(histograms["hooks"].sum(dim=1).tolist()) == {0.0 if arm == "none" else pairs}
    moved = (histograms["fused"] - histograms["hooks"]).abs().sum()
    assert moved <= 2  # rounding may carry one value over the edge of its bin
