"""LearningDynamics: one backward pass, two orthogonal streams.

The task loss's gradient goes to the computation parameters. The meta-loss's goes to P and G of each layer, from that
layer's detached input: learning is local. Every worker computes both on its own shard; all that it sends is sums.
"""

from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tiny_onn.capture import Captured, CapturedCall, Storage, capture
from tiny_onn.distributed import sum_over_workers
from tiny_onn.layers import SparseProtoLinear, computation_parameters
from tiny_onn.learning_cost import LayerCost, LearningCost, TokenCost
from tiny_onn.mas import mas
from tiny_onn.meta_loss import meta_loss_and_gradient
from tiny_onn.routing_health import Health, routing_health
from tiny_onn.signals import Signals, layer_signals, token_signals


@dataclass(frozen=True)
class DynamicsReport:
    """What a step did; detached, on the device, already global.

    `meta_loss` in nats, NaN in the control arm. `gradient_norm` of the computation stream before clipping. `health` by
    module, where it was asked for.
    """

    meta_loss: Tensor
    gradient_norm: Tensor
    health: dict[str, Health] | None


class LearningDynamics:
    """Turns one task loss into an update of both streams.

    Args:
        model: the bare model, not its DDP wrapper.
        cost: the arm's learning cost; None for the control, whose router the task loss trains.
        computation_optimizer: over `computation_parameters(model)`.
        router_optimizer: over `router_parameters(model)`.
        clip_norm: bound on the gradient norm of the computation stream.
        storage: see `capture`.
    """

    def __init__(
        self,
        model: nn.Module,
        cost: LearningCost | None,
        computation_optimizer: torch.optim.Optimizer,
        router_optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float = 1.0,
        storage: Storage = "reference",
    ) -> None:
        self.model, self.cost = model, cost
        self.computation_optimizer, self.router_optimizer = computation_optimizer, router_optimizer
        self.clip_norm, self.storage = clip_norm, storage
        self._computation = computation_parameters(model)

    def capture(self, valid: Tensor | None = None) -> AbstractContextManager[Captured]:
        """The context in which to run forward and `compute_and_apply_gradients`."""
        return capture(self.model, valid=valid, storage=self.storage)

    def compute_and_apply_gradients(
        self, task_loss: Tensor, captured: Captured | None, *, labels: Tensor | int, observe: bool = False
    ) -> DynamicsReport:
        """Backward, meta-learning, one step of both optimizers; ADR-0004's method of this name.

        Args:
            task_loss: this worker's share: its sum over labelled tokens divided by the *global* number of them.
                Gradients must be summed over workers, not averaged; see `tiny_onn.distributed`.
            captured: what `capture` saw of the forward passes. None is right only in the control arm.
            labels: that global number.
            observe: also measure routing health, which costs about as much again as the meta-loss.

        Raises:
            CaptureError: a captured call cannot be trusted; no parameter has been changed.
            RuntimeError: the gradient norm is not finite; no parameter has been changed.
        """
        try:
            task_loss.backward()
            calls = captured.calls() if captured is not None else []
            health: dict[str, Health] | None = {} if observe else None
            if self.cost is None:
                meta = task_loss.new_full((), torch.nan)
                for call in calls if observe else []:
                    _observe(health, call, None)
            else:
                meta = self._meta_backward(self.cost, calls, labels, health)
            norm = nn.utils.clip_grad_norm_(self._computation, self.clip_norm, error_if_nonfinite=True)
            self.computation_optimizer.step()
            self.router_optimizer.step()
        finally:
            self.computation_optimizer.zero_grad()
            self.router_optimizer.zero_grad()
        return DynamicsReport(meta, norm.detach(), _over_workers(health))

    @staticmethod
    def _meta_backward(
        cost: LearningCost, calls: list[CapturedCall], labels: Tensor | int, health: dict[str, Health] | None
    ) -> Tensor:
        """Fills P.grad and G.grad with the meta-loss's gradient; returns the meta-loss. One reduction over workers."""
        by_module: dict[str, list[CapturedCall]] = defaultdict(list)
        for call in calls:
            by_module[call.module_name].append(call)
        shared = layer_signals(by_module, cost) if isinstance(cost, LayerCost) else {}
        sums: list[Tensor] = []
        for name, module_calls in by_module.items():
            parts = []
            for call in module_calls:
                x, masked_output, grad_output = call.tokens()
                if isinstance(cost, TokenCost):
                    signals = token_signals(cost, x, masked_output, grad_output * labels)
                else:
                    signals = shared[name]
                parts.append(_router_gradients(call.module, x, signals))
                _observe(health, call, signals)
            sums += [sum(part).reshape(-1) for part in zip(*parts, strict=True)]
        flat = iter(sum_over_workers(torch.cat(sums)).split([len(part) for part in sums]))
        losses = []
        for module_calls in by_module.values():
            module = module_calls[0].module
            prototypes, gates, (loss, count) = next(flat), next(flat), next(flat)
            share = 1 / (count.clamp(min=1) * len(by_module))
            module.proto_weight.grad = (prototypes * share).view_as(module.proto_weight).to(module.proto_weight.dtype)
            module.gate_param.grad = (gates * share).view_as(module.gate_param).to(module.gate_param.dtype)
            losses.append(loss * share)
        return torch.stack(losses).sum()


@torch.no_grad()
def _router_gradients(module: SparseProtoLinear, x: Tensor, signals: Signals) -> tuple[Tensor, Tensor, Tensor]:
    """Of one call, summed over its tokens: the meta-loss's gradient of P and of G, and (meta-loss, tokens)."""
    with torch.autocast(x.device.type, enabled=False):
        loss, logits_gradient = meta_loss_and_gradient(module.routing_logits(x, learn=False), signals.goodness)
        prototypes, gates = module.router_gradients(x, logits_gradient)
    return prototypes, gates, torch.stack([loss, loss.new_tensor(len(x))])


@torch.no_grad()
def _observe(health: dict[str, Health] | None, call: CapturedCall, signals: Signals | None) -> None:
    """Adds the call's routing health to its module's, where health is wanted."""
    if health is None:
        return
    weights = mas(call.module.routing_logits(call.tokens()[0], learn=False))
    if signals is None:
        seen = routing_health(weights)
    else:
        seen = routing_health(weights, signals.goodness, (signals.contribution, signals.relevance, signals.cost))
    before = health.get(call.module_name)
    health[call.module_name] = before + seen if before else seen


def _over_workers(health: dict[str, Health] | None) -> dict[str, Health] | None:
    if not health:
        return health
    flats = [h.flat() for h in health.values()]
    reduced = sum_over_workers(torch.cat(flats)).split([len(flat) for flat in flats])
    return {name: Health.from_flat(flat) for name, flat in zip(health, reduced, strict=True)}
