"""Small models and one training step, for the tests."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests import oracles
from tiny_onn.arm import Arm, configure
from tiny_onn.arm import arm as find_arm
from tiny_onn.capture import capture
from tiny_onn.dynamics import DynamicsReport, LearningDynamics
from tiny_onn.layers import SparseProtoLinear, computation_parameters, router_parameters
from tiny_onn.model import GridTransformer
from tiny_onn.objectives import OBJECTIVES

VOCABULARY = 7


def small_model(arm: str | Arm = "per_token", seed: int = 0, **routing: Any) -> GridTransformer:
    """Two layers in float64, with G away from zero so that the gate is at work."""
    torch.manual_seed(seed)
    routing = {"gate_parameter": "zero"} | routing
    model = GridTransformer(vocabulary=VOCABULARY, coordinates=5, hidden=12, layers=2, heads=3, **routing).double()
    configure(model, find_arm(arm) if isinstance(arm, str) else arm)
    for module in model.modules():
        if isinstance(module, SparseProtoLinear):
            if module.gate_param is not None:
                nn.init.normal_(module.gate_param, std=0.3)
            nn.init.normal_(module.mu_bias, std=0.1)
    return model


class Chain(nn.Module):
    """Layers square and not, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = (SparseProtoLinear(5, width, gate_parameter="zero").double() for width in (5, 4))
        for layer in (self.first, self.second):
            nn.init.normal_(layer.gate_param, std=0.3)
            nn.init.normal_(layer.proto_weight)  # or most tokens would be routed nowhere, and teach the router nothing

    def forward(self, x: Tensor, through: str = "plain") -> Tensor:
        if through == "plain":
            return self.second(self.first(self.first(x)))
        reentrant = through == "reentrant"
        for layer in (self.first, self.first, self.second):
            x = checkpoint(layer, x, use_reentrant=reentrant)
        return x


def batch(generator: torch.Generator, size: int, length: int) -> tuple[Tensor, Tensor]:
    """(tokens, valid): rows of unequal lengths, padded on the right with token 0."""
    tokens = torch.randint(1, VOCABULARY, (size, length), generator=generator)
    lengths = torch.randint(2, length + 1, (size,), generator=generator)
    lengths[0] = length
    valid = torch.arange(length) < lengths[:, None]
    return tokens * valid, valid


def loss_sum(model: nn.Module, tokens: Tensor, valid: Tensor) -> tuple[Tensor, int]:
    """Next-token cross-entropy, summed, and its number of labels."""
    labels = torch.where(valid[:, 1:], tokens[:, 1:], -100)
    coordinates = tokens % 5
    logits = model(tokens, coordinates, coordinates)[:, :-1]
    total = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total, int((labels != -100).sum())


def new_dynamics(model: nn.Module, arm: str, rate: float = 1e-2, **options: object) -> LearningDynamics:
    """Two AdamW around a model."""
    return LearningDynamics(
        model,
        find_arm(arm),
        torch.optim.AdamW(computation_parameters(model), lr=rate),
        torch.optim.AdamW(router_parameters(model), lr=rate, weight_decay=0.0),
        **options,  # type: ignore[arg-type]
    )


def step(
    dynamics: LearningDynamics, ids: Tensor, valid: Tensor, model: nn.Module | None = None, **options: Any
) -> DynamicsReport:
    """One step on one worker."""
    count = int(valid[:, 1:].sum())
    with dynamics.watch(valid, labels=count, **options) as engine:
        total, _ = loss_sum(model or dynamics.model, ids, valid)
        return dynamics.compute_and_apply_gradients(total / count, engine)


def router_gradients_of(dynamics: LearningDynamics, tokens: Tensor, valid: Tensor) -> list[Tensor]:
    """The gradients that a step would apply to P and G, module by module, without applying any."""
    seen: list[Tensor] = []
    dynamics.computation_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    dynamics.router_optimizer.step = lambda: seen.extend(  # type: ignore[method-assign, assignment]
        p.grad.clone() for p in router_parameters(dynamics.model)
    )
    step(dynamics, tokens, valid)
    return seen


def slow_router_gradients(
    model: nn.Module,
    tokens: Tensor,
    valid: Tensor,
    signal: str,
    objective: str,
    sharpness: float = 1.0,
    *,
    weighted: bool = False,
) -> list[Tensor]:
    """P's of each call of a model without G, by the oracles: capture with clones, Goodness token by token, autograd
    through the definition."""
    gradients = []
    with capture(model, valid=valid, storage="clone", masked=True) as captured:
        total, count = loss_sum(model, tokens, valid)
        (total / count).backward()
        for call in captured.calls():
            mask = valid.flatten()
            assert call.computation_output is not None
            assert call.masked_gradient is not None
            x, o, y, g, g_o = (
                t.flatten(0, 1)[mask]
                for t in (call.x, call.masked_output, call.computation_output, call.grad_output, call.masked_gradient)
            )
            g, g_o = oracles.without_noise(g * count), oracles.without_noise(g_o * count)
            good = oracles.signal(signal, o, y, g, g_o, oracles.token_costs(g, x))
            scores = good if OBJECTIVES[objective].signed else oracles.mas(good) ** sharpness
            sizes = good.max(dim=1).values.clamp(min=0) if weighted else torch.ones(len(x), dtype=x.dtype)
            P = call.module.proto_weight.detach().clone().requires_grad_(True)
            logits = x @ P.T / math.sqrt(x.shape[1])
            loss = (oracles.objective(objective, logits, scores) * sizes).sum() / sizes.sum()
            gradients += torch.autograd.grad(loss, [P])
    return [g / len(gradients) for g in gradients]


def all_gradients(dynamics: LearningDynamics, run: Callable[[], DynamicsReport]) -> dict[str, Tensor]:
    """Every parameter's gradient as the optimizers would get it, after clipping, without any step being taken."""
    seen: dict[str, Tensor] = {}
    dynamics.computation_optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    dynamics.router_optimizer.step = lambda: seen.update(  # type: ignore[method-assign, assignment]
        {name: p.grad.clone() for name, p in dynamics.model.named_parameters() if p.grad is not None}
    )
    run()
    return seen
