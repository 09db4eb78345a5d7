"""Arms made of parts: both engines against each other and against autograd through the definitions, in float64."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import oracles
from tests.tiny_onn.helpers import (
    all_gradients,
    batch,
    loss_sum,
    new_dynamics,
    router_gradients_of,
    slow_router_gradients,
    small_model,
    step,
)
from tiny_onn.arm import ARMS, Arm, Goodness, Teacher, arm, configure
from tiny_onn.arms import ARM_FACTS
from tiny_onn.capture import capture
from tiny_onn.dynamics import DynamicsReport, LearningDynamics
from tiny_onn.gates import GATES, HARD, MAGNITUDE, MAS, OPEN, RELU, experts_of
from tiny_onn.layers import SparseProtoLinear, computation_parameters, router_parameters, sparse_layers
from tiny_onn.learning_cost import COSTS
from tiny_onn.objectives import CROSS_ENTROPY, OBJECTIVES, POLICY
from tiny_onn.regulation import REGULATIONS, RegulationState, Seen, after_step, first_state
from tiny_onn.signals import BENEFIT, OPENING, SIGNALS

PER_TOKEN = COSTS["per_token"]


def mine(**parts: Any) -> Arm:
    """A Goodness arm from a few parts."""
    of_goodness = {key: parts.pop(key) for key in ("signal", "objective", "sharpness", "token_weight") if key in parts}
    return Arm(Teacher(goodness=Goodness(PER_TOKEN, **of_goodness)), **parts)


BOTH = Arm(Teacher(task=0.5, goodness=Goodness(PER_TOKEN, OPENING, CROSS_ENTROPY, token_weight="signal"), weight=2.0))
CASES: dict[str, tuple[Arm, float | None, str]] = {
    **{
        f"{name} at {density}": (ARMS[name], density, "off")
        for name in ("signed", "opening", "subtractive", "top_k")
        for density in (None, 0.3)
    },
    **{f"{name} at 0.3": (ARMS[name], 0.3, "off") for name in ("remoe", "switch", "magnitude", "magnitude_ste")},
    "dense": (ARMS["dense"], None, "off"),
    "switch without limit": (ARMS["switch"], None, "off"),
    "a hard gate": (mine(gate=HARD, signal=OPENING), 0.5, "off"),
    "an open gate over the best": (mine(gate=OPEN, signal=OPENING, objective=CROSS_ENTROPY), 0.3, "off"),
    "the policy gradient": (mine(gate=OPEN, signal=BENEFIT, objective=POLICY), 0.3, "off"),
    **{f"{name} at 0.3": (ARMS[name], 0.3, "off") for name in ("benefit", "balanced")},
    "two teachers": (BOTH, 0.4, "off"),
    "two teachers and a G": (BOTH, None, "zero"),
    "a G of one number an expert": (mine(signal=OPENING), None, "scalar"),
    "sharpened": (mine(signal=OPENING, sharpness=0.7), None, "off"),
    **{
        f"regulated by {name}": (mine(signal=OPENING, regulation=regulation), 0.3, "off")
        for name, regulation in REGULATIONS.items()
    },
    "a penalty and two teachers": (
        Arm(Teacher(task=1.0, goodness=Goodness(PER_TOKEN)), RELU, REGULATIONS["adaptive_l1"]),
        0.3,
        "off",
    ),
}
ENGINES = pytest.mark.parametrize("engine", ["hooks", "fused"])


def dynamics_of(case: str, engine: str, clip_norm: float = 1e9) -> LearningDynamics:
    of_case, density, gate_parameter = CASES[case]
    torch.manual_seed(2)
    model = small_model(of_case, density=density, gate_parameter=gate_parameter)
    return LearningDynamics(
        model,
        of_case,
        torch.optim.SGD(computation_parameters(model), lr=0.1),  # which does not blow rounding up, as Adam does
        torch.optim.SGD(router_parameters(model), lr=0.1),
        engine=engine,  # type: ignore[arg-type]
        clip_norm=clip_norm,
    )


def assert_same(computed: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    assert computed.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(computed[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_the_engines_agree_step_by_step(case: str) -> None:
    """Losses, every gradient, and what a regulation remembers, over three steps with padding."""
    by_engine: dict[str, list[Any]] = {}
    for engine in ("hooks", "fused"):
        dynamics, generator = dynamics_of(case, engine), torch.Generator().manual_seed(0)
        seen: list[Any] = by_engine.setdefault(engine, [])
        for _ in range(3):
            tokens, valid = batch(generator, 3, 6)
            report = step(dynamics, tokens, valid)
            seen.append((float(report.task_loss), float(report.meta_loss)))
        seen.append({name: value.clone() for name, value in dynamics.model.state_dict().items()})
        tokens, valid = batch(generator, 3, 6)
        seen.append(all_gradients(dynamics, lambda d=dynamics, t=tokens, v=valid: step(d, t, v)))
    for hooks, fused in zip(by_engine["hooks"], by_engine["fused"], strict=True):
        if isinstance(hooks, tuple):
            assert fused == pytest.approx(hooks, rel=1e-10, abs=1e-12, nan_ok=True)
        else:
            assert_same(fused, hooks)


@ENGINES
@pytest.mark.parametrize("case", CASES)
def test_padding_and_accumulation_change_nothing(case: str, engine: str) -> None:
    tokens, valid = batch(torch.Generator().manual_seed(9), 4, 6)
    count = int(valid[:, 1:].sum())
    whole = dynamics_of(case, engine)
    truth = all_gradients(whole, lambda: step(whole, tokens, valid))
    padded = dynamics_of(case, engine)
    more, mask = nn.functional.pad(tokens, (0, 3)), nn.functional.pad(valid, (0, 3))
    assert_same(all_gradients(padded, lambda: step(padded, more, mask)), truth)
    apart = dynamics_of(case, engine)

    def in_two() -> DynamicsReport:
        with apart.watch(labels=count) as opened:
            losses = []
            for rows in (slice(0, 1), slice(1, 4)):
                opened.use_valid(valid[rows])
                losses.append(loss_sum(apart.model, tokens[rows], valid[rows])[0] / count)
            losses[0].backward()
            return apart.compute_and_apply_gradients(losses[1], opened)

    assert_same(all_gradients(apart, in_two), truth)
    for name, buffer in whole.model.named_buffers():
        torch.testing.assert_close(apart.model.get_buffer(name), buffer, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(padded.model.get_buffer(name), buffer, rtol=1e-12, atol=1e-14)


@ENGINES
@pytest.mark.parametrize(("signal", "objective"), list(itertools.product(SIGNALS, OBJECTIVES)))
@pytest.mark.parametrize(("sharpness", "weighted"), [(1.0, False), (0.6, True)])
def test_every_signal_and_objective_is_the_oracles(
    signal: str, objective: str, sharpness: float, weighted: bool, engine: str
) -> None:
    if OBJECTIVES[objective].signed:
        sharpness = 1.0
    tokens, valid = batch(torch.Generator().manual_seed(4), 3, 6)
    routed = small_model("per_token", gate_parameter="off", density=0.5)
    truth = slow_router_gradients(routed, tokens, valid, signal, objective, sharpness, weighted=weighted)
    weight = "signal" if weighted else "uniform"
    built = mine(signal=SIGNALS[signal], objective=OBJECTIVES[objective], sharpness=sharpness, token_weight=weight)
    model = small_model("per_token", gate_parameter="off", density=0.5)
    dynamics = LearningDynamics(
        model,
        built,
        torch.optim.SGD(computation_parameters(model), lr=0.1),
        torch.optim.SGD(router_parameters(model), lr=0.1),
        engine=engine,  # type: ignore[arg-type]
    )
    gradients = router_gradients_of(dynamics, tokens, valid)
    assert max(float(t.abs().max()) for t in truth) > 1e-5
    for a, b in zip(gradients, truth, strict=True):
        # Where a gradient is nothing but rounding, the ADR's ratio divides it by EPS = 1e-9, and an exponent below 1
        # is steep at 0: rounding of 1e-16 comes out at 1e-9 and above.
        assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max()) + 1e-12


@pytest.mark.parametrize("k", [None, 1, 2])
@pytest.mark.parametrize("gate", GATES)
def test_a_layer_with_any_gate_is_its_definition_and_so_is_its_gradient(gate: str, k: int | None) -> None:
    torch.manual_seed(5)
    density = None if k is None else k / 4
    taught = arm("task_only", {"gate": gate})
    layer = SparseProtoLinear(4, 4, gain=1.3, gate=GATES[gate], density=density, router_learns_from_task=True).double()
    assert experts_of(density, 4) == k
    nn.init.normal_(layer.mu_bias)
    pull = torch.randn(6, 4, dtype=torch.float64)
    runs: list[list[Tensor]] = []
    for oracle in (False, True):
        x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        layer.zero_grad()
        if oracle:
            y = x @ layer.mu_weight.T + layer.mu_bias + x
            logits = 1.3 * x @ layer.proto_weight.T / math.sqrt(4)
            weights = oracles.gate_weights(gate, logits, y, k)
            out = y + (y * weights - y).detach() if gate == "magnitude_ste" else y * weights
        else:
            out = layer(x)
        (out * pull).sum().backward()
        of_router = torch.zeros(4, 4) if layer.proto_weight.grad is None else layer.proto_weight.grad
        runs.append([out.detach(), x.grad, layer.mu_weight.grad, of_router])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-10, atol=1e-12)
    assert taught.gate is GATES[gate]


def test_a_limit_keeps_the_k_best_and_those_that_tie_with_them() -> None:
    layer = SparseProtoLinear(2, 4, density=0.5, residual=False)
    with torch.no_grad():
        layer.proto_weight.copy_(torch.tensor([[3.0, 0], [2, 0], [2, 0], [1, 0]]))
        layer.mu_bias.fill_(1.0)
        layer.mu_weight.zero_()
    active = (layer(torch.tensor([[1.0, 0.0]])) > 0).tolist()
    assert active == [[True, True, True, False]]
    assert [experts_of(density, 64) for density in (0.001, 0.05, 0.5, 1.0, None)] == [1, 3, 32, None, None]
    for wrong in (0.0, 1.5, -0.1):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            SparseProtoLinear(2, 4, density=wrong)


def test_an_adr_signal_never_opens_a_closed_expert_and_opening_does() -> None:
    """What makes `opening` another signal: dL/dy = w dL/do is 0 where w is."""
    tokens, valid = batch(torch.Generator().manual_seed(4), 3, 6)
    for name, opens in (("goodness", False), ("signed", False), ("opening", True)):
        model = small_model("per_token", gate_parameter="off", density=0.3)
        seen = False
        with capture(model, valid=valid, masked=True) as captured:
            total, count = loss_sum(model, tokens, valid)
            (total / count).backward()
            for call in captured.calls():
                y, g, g_o = (call.select(t) for t in (call.computation_output, call.grad_output, call.masked_gradient))  # type: ignore[arg-type]
                moment_cost = g.abs()
                values = oracles.signal(name, call.select(call.masked_output), y, g, g_o, moment_cost)
                closed = call.select(call.routing.weights()) == 0
                seen = seen or bool((values[closed] > 0).any())
        assert seen == opens, name


@pytest.mark.parametrize("name", REGULATIONS)
def test_a_regulation_moves_towards_its_target_and_rests_there(name: str) -> None:
    regulation, target = REGULATIONS[name], 0.25
    state = RegulationState(*(each.double() for each in first_state(regulation, 4, target)))

    def after(load: list[float]) -> RegulationState:
        active = 8 * torch.tensor(load, dtype=torch.float64)
        tokens = torch.tensor(8.0, dtype=torch.float64)
        return after_step(regulation, state, Seen(tokens, 2 * tokens, active), target)

    rest, dense, sparse = after([0.25] * 4), after([1.0, 1.0, 0.5, 0.5]), after([0.0, 0.0, 0.125, 0.0])
    torch.testing.assert_close(rest.threshold, state.threshold)
    torch.testing.assert_close(rest.pressure, state.pressure)
    assert dense.load.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert float(dense.scale) == 2  # the first step's mean |logit|
    if regulation.shifts:
        assert (dense.threshold > 0).all()
        assert (sparse.threshold < 0).all()
    elif name != "load_balance":
        assert float(dense.pressure) > float(state.pressure) > float(sparse.pressure)
    nobody = after_step(regulation, dense, Seen(*(torch.zeros(()).double(),) * 2, torch.zeros(4).double()), target)
    assert all(torch.equal(a, b) for a, b in zip(nobody, dense, strict=True))


@pytest.mark.parametrize("name", ["adaptive_l1", "bias", "quantile"])
def test_a_regulated_layer_arrives_at_its_density(name: str) -> None:
    """Beside a task that wants all experts, over 300 steps: within a fifth of the target."""
    torch.manual_seed(0)
    regulated, wanted = Arm(Teacher(task=1.0), RELU, REGULATIONS[name]), torch.randn(16, 16) / 4
    model = SparseProtoLinear(16, 16, density=0.2)
    dynamics = LearningDynamics(
        model,
        regulated,
        torch.optim.Adam(computation_parameters(model), lr=3e-3),
        torch.optim.Adam(router_parameters(model), lr=3e-3),
        engine="fused",
    )
    rates = []
    for _ in range(300):
        x = torch.randn(64, 16) + 0.5
        with dynamics.watch(labels=64) as opened:
            dynamics.compute_and_apply_gradients((model(x) - x @ wanted).square().sum() / 64, opened)
        rates.append(float(model.regulation_load.mean()))
    assert rates[0] > 0.35
    assert sum(rates[-20:]) / 20 == pytest.approx(0.2, rel=0.2)


def test_parts_that_do_not_go_together_are_refused_with_a_reason() -> None:
    for built, density, message in (
        (Arm(Teacher(task=1.0), HARD), None, "its gate has no derivative"),
        (Arm(Teacher(task=1.0), OPEN), 0.5, "its gate has no derivative"),
        (Arm(Teacher(goodness=Goodness(PER_TOKEN)), OPEN), None, "set model.density"),
        (Arm(Teacher(goodness=Goodness(PER_TOKEN)), MAGNITUDE), None, "a router that its gate does not read"),
        (Arm(Teacher(goodness=Goodness(COSTS["aggregated"], OPENING))), None, "only the signal 'goodness'"),
        (Arm(Teacher(task=-1.0)), None, "negative weight"),
        (mine(sharpness=0.0), None, "sharpness 0.0"),
        (mine(sharpness=2.0, objective=POLICY), None, "leave sharpness 1"),
        (mine(objective=POLICY, regulation=REGULATIONS["sharpness"]), 0.2, "leave sharpness 1"),
        (Arm(Teacher(task=1.0), MAS, REGULATIONS["sharpness"]), 0.2, "has no Goodness"),
        (Arm(Teacher(goodness=Goodness(PER_TOKEN)), HARD, REGULATIONS["adaptive_l1"]), 0.2, "no derivative"),
        (mine(token_weight="signal", regulation=REGULATIONS["adaptive_l1"]), 0.2, "a teacher that weights them"),
    ):
        assert message in str(built.problem(density)), built
        layer = SparseProtoLinear(4, 4, density=density)
        with pytest.raises(ValueError, match="the arm "):
            configure(layer, built)
    assert Arm(Teacher(), OPEN, REGULATIONS["bias"]).problem(None) is None  # no density, no regulation
    with pytest.raises(ValueError, match="'first' has another gate than the arm"):
        configure(nn.ModuleDict({"first": SparseProtoLinear(4, 4, gate=RELU)}), ARMS["per_token"])
    for parts, message in (
        ({"gate": "nonesuch"}, "unknown gate 'nonesuch'; there are mas, relu"),
        ({"signal": "tests.tiny_onn.test_arms:PER_TOKEN"}, "is a TokenCost; expected a Signal"),
        ({"objective": "tests.tiny_onn.test_arms:BROKEN"}, "has a derivative in closed form that is not"),
    ):
        with pytest.raises(ValueError, match=message):
            arm("opening", parts)
    with pytest.raises(ValueError, match="part of Goodness, which this arm's router is not taught by"):
        arm("top_k", {"signal": "opening"})


BROKEN = replace(CROSS_ENTROPY, weighted=lambda logits, scores, weights: (weights.sum(), torch.ones_like(logits)))


@pytest.mark.parametrize("name", ARM_FACTS)
def test_every_arm_takes_a_step_in_a_model_of_ones_own(name: str) -> None:
    """LearningDynamics configures layers that say nothing themselves: no arm trains nothing without a word."""
    torch.manual_seed(0)
    model = nn.Sequential(SparseProtoLinear(6, 6, density=0.5), SparseProtoLinear(6, 4, density=0.5))
    chosen = arm(name)
    dynamics = LearningDynamics(
        model,
        chosen,
        torch.optim.AdamW(computation_parameters(model)),
        torch.optim.AdamW(router_parameters(model), weight_decay=0),
        engine="hooks" if chosen.measures_layers else "fused",
    )
    pull = torch.randn(8, 4)
    before = {layer: model[int(layer)].proto_weight.detach().clone() for layer in sparse_layers(model)}
    for _ in range(2):  # a penalty needs one step to know the load
        with dynamics.watch(labels=8) as opened:
            loss = (model(torch.randn(8, 6)) * pull).sum() / 8
            dynamics.compute_and_apply_gradients(loss, opened)
    moved = [not torch.equal(model[int(layer)].proto_weight, value) for layer, value in before.items()]
    has_teacher = chosen.teacher.task or chosen.teacher.goodness
    assert moved == [bool(has_teacher)] * 2


def test_a_product_that_is_provably_zero_is_not_computed() -> None:
    """Without G, and without a router where the gate reads none: counted in matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(name: str, gate_parameter: str, engine: str) -> int:
        dynamics = new_dynamics(small_model(name, gate_parameter=gate_parameter), name, engine=engine)
        tokens, valid = batch(torch.Generator().manual_seed(0), 2, 5)
        with FlopCounterMode(display=False) as counter:
            step(dynamics, tokens, valid)
        return counter.get_total_flops()

    square = 2 * 10 * 12 * 12  # one product of 10 tokens through 12 x 12
    for engine in ("hooks", "fused"):
        with_g, without = (flops("per_token", g, engine) for g in ("zero", "off"))
        assert with_g - without == 8 * 3 * square  # x G^T, and its two gradients, in each of 8 layers
        assert flops("per_token", "off", engine) - flops("dense", "off", engine) == 8 * 3 * square  # those of P


def test_a_copy_made_while_an_engine_is_open_is_free_of_it() -> None:
    import copy

    tokens, valid = batch(torch.Generator().manual_seed(0), 2, 5)
    for engine in ("hooks", "fused"):
        dynamics = new_dynamics(small_model(), "per_token", engine=engine)
        with dynamics.watch(valid, labels=1) as opened:
            snapshot = copy.deepcopy(dynamics.model)
            for layer in sparse_layers(snapshot).values():
                assert layer.single_pass is None
                assert not layer.call_point._forward_hooks
            total, _ = loss_sum(dynamics.model, tokens, valid)
            loss_sum(snapshot, tokens, valid)[0].backward()  # teaches nobody, and is no call without a gradient
            dynamics.compute_and_apply_gradients(total, opened)
        assert all(p.grad is None for p in dynamics.model.parameters())


@ENGINES
@pytest.mark.parametrize("name", ["per_token", "aggregated", "opening"])
def test_a_frozen_layer_still_teaches_its_router(name: str, engine: str) -> None:
    """Frozen W, b and embedding: P learns what it learns beside a W that is free."""
    if name == "aggregated" and engine == "fused":
        pytest.skip("a cost of a whole layer needs the hooks")
    tokens, valid = batch(torch.Generator().manual_seed(3), 3, 6)
    gradients = {}
    for frozen in (False, True):
        dynamics = new_dynamics(small_model(name), name, engine=engine)
        if frozen:
            for parameter in computation_parameters(dynamics.model):
                parameter.requires_grad_(parameter.ndim == 2 and parameter is dynamics.model.head.weight)
        gradients[frozen] = all_gradients(dynamics, lambda d=dynamics: step(d, tokens, valid))
    router = [key for key in gradients[False] if "proto" in key]
    assert len(router) == 8
    for key in router:
        torch.testing.assert_close(gradients[True][key], gradients[False][key], rtol=1e-9, atol=1e-12)
