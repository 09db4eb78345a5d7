"""The ADR's engine: capture by hooks, and the meta-loss's gradient from what they caught.

A cost of granularity "token" needs nothing but the call itself, so a call is made use of as its gradient arrives and
none of its tensors outlives that. A cost of granularity "layer" needs the sum over all tokens of all workers first: x
and the routing of every call are kept until then.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tiny_onn.capture import (
    WITHOUT_COMPILER,
    WITHOUT_CREATE_GRAPH,
    Captured,
    CapturedCall,
    CaptureError,
    Storage,
    capture,
)
from tiny_onn.compiling import compiled
from tiny_onn.distributed import sum_over_workers
from tiny_onn.engine import observe, scalar, set_router_gradients
from tiny_onn.learning_cost import LayerCost, LearningCost, TokenCost, WeightState
from tiny_onn.meta_learning import MetaGradient, Moment, towards, towards_token_goodness
from tiny_onn.routing import Routing, at_least_float32
from tiny_onn.routing_health import Health
from tiny_onn.signals import layer_signals, token_signals


@dataclass
class _ModuleSums:
    """Of one module, over its calls: the router's gradients and (meta-loss, tokens); this worker's."""

    prototypes: Tensor | float = 0.0
    gates: Tensor | float = 0.0
    loss_and_tokens: Tensor | float = 0.0
    squares: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    calls: list[CapturedCall] = field(default_factory=list)


class HooksPass:
    """An Engine on top of `capture`."""

    def __init__(
        self,
        cost: LearningCost | None,
        *,
        labels: Tensor | int,
        second_moments: dict[str, Tensor],
        health: dict[str, Health] | None,
        use_compiler: bool,
    ) -> None:
        self._cost, self._labels, self._second_moments, self.health = cost, labels, second_moments, health
        self._sums: dict[str, _ModuleSums] = defaultdict(_ModuleSums)
        self._captured: Captured
        self._towards: Callable[..., MetaGradient] = compiled(towards_tokens, 6) if use_compiler else towards_tokens
        self._towards_shared: Callable[..., MetaGradient] = (
            compiled(towards_layer, 3) if use_compiler else towards_layer
        )

    def use_valid(self, valid: Tensor | None, tokens: Tensor | int | None = None) -> None:
        """See Engine; the number of tokens is counted here and goes with the reduction of the gradients."""
        self._captured.use_valid(valid)

    def on_gradient(self, call: CapturedCall) -> None:
        """Makes what use can be made of a call as its gradient arrives, and lets go of the rest."""
        if torch.is_grad_enabled():
            raise CaptureError(WITHOUT_CREATE_GRAPH)
        sums = self._sums[call.module_name]
        cost = self._cost
        if isinstance(cost, TokenCost):
            weight = WeightState(call.module.mu_weight.detach(), self._second_moments.get(call.module_name))
            if self.health is not None:
                x, masked_output, grad_output = call.tokens()
                signals = token_signals(cost, x, masked_output, grad_output * self._labels, weight)
                observe(self.health, call.module_name, _valid_routing(call), signals)
            moment, routing, counts = _whole(call)
            labels = scalar(self._labels, counts)
            found = self._towards(*moment, routing.match, routing.gate, counts, cost, weight, labels, routing.gain)
            self._add(sums, call, found, counts)
            call.let_go("x", "masked_output", "routing", "grad_output")
        elif isinstance(cost, LayerCost):
            (_, masked_output, grad_output), _, counts = _whole(call)
            sums.squares.append((_sum_of_squares(masked_output, counts), _sum_of_squares(grad_output, counts)))
            sums.calls.append(call)
            call.let_go("masked_output", "grad_output")
        else:
            assert self.health is not None  # or nothing would be captured
            observe(self.health, call.module_name, _valid_routing(call), None)
            call.let_go("x", "masked_output", "routing", "grad_output")

    def finish(self, task_loss: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine. One reduction over the workers; one more, of 2 numbers an expert, for a cost a layer."""
        self._captured.calls()  # raises where one got no gradient
        task_loss = task_loss.detach().reshape(1)
        if self._cost is None:
            both = torch.cat(
                [task_loss, torch.full_like(task_loss, torch.nan)]
            )  # the losses of a step, as in other arms
            return sum_over_workers(both)[0], both[1]
        names = [name for name in self._captured.layers if name in self._sums]
        if not names:  # a meta-loss of 0 would look like a router that has learned all there is
            raise CaptureError(f"no SparseProtoLinear was called in this step, or none was seen: {WITHOUT_COMPILER}")
        if isinstance(self._cost, LayerCost):
            self._towards_layer_goodness(self._cost, names)
        sums = [part.reshape(-1) for name in names for part in _parts(self._sums[name])]
        dtype = torch.promote_types(task_loss.dtype, sums[0].dtype) if sums else task_loss.dtype
        message = sum_over_workers(torch.cat([part.to(dtype) for part in [*sums, task_loss]]))
        flat = iter(message.split([len(part) for part in [*sums, task_loss]]))
        meta_loss = message.new_zeros(())
        for name in names:
            prototypes, gates, (loss, tokens) = next(flat), next(flat), next(flat)
            share = 1 / (tokens.clamp(min=1) * len(names))
            set_router_gradients(self._captured.layers[name], prototypes, gates, share)
            meta_loss = meta_loss + loss * share
        return next(flat)[0], meta_loss

    def _towards_layer_goodness(self, cost: LayerCost, names: list[str]) -> None:
        squares, gradients = {}, {}
        for name in names:
            contributions, relevances = zip(*self._sums[name].squares, strict=True)
            squares[name] = (torch.stack(contributions).sum(dim=0), torch.stack(relevances).sum(dim=0))
            gradient = self._captured.layers[name].mu_weight.grad
            if gradient is None:
                raise RuntimeError(f"{name!r} has no weight gradient; a cost of granularity 'layer' is measured on it")
            gradients[name] = gradient
        signals = layer_signals(squares, gradients, cost)
        for name in names:
            for call in self._sums[name].calls:
                if self.health is not None:
                    observe(self.health, name, _valid_routing(call), signals[name])
                routing, counts = _whole_routing(call)
                found = self._towards_shared(
                    routing.match, routing.gate, counts, signals[name].goodness, routing.gain, routing.in_features
                )
                self._add(self._sums[name], call, found, counts)
                call.let_go("x", "routing")

    @staticmethod
    def _add(sums: _ModuleSums, call: CapturedCall, found: MetaGradient, counts: Tensor) -> None:
        """The products with x, in the precision in which the forward pass took them."""
        dtype = call.routing.match.dtype
        x = _flat(call.x).to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            sums.prototypes = sums.prototypes + at_least_float32(found.match.to(dtype).T @ x)
            sums.gates = sums.gates + at_least_float32(found.gate.to(dtype).T @ x)
        sums.loss_and_tokens = sums.loss_and_tokens + torch.stack([found.loss, counts.sum()])


def towards_tokens(
    x: Tensor,
    masked_output: Tensor,
    grad_output: Tensor,
    match: Tensor,
    gate: Tensor,
    counts: Tensor,
    cost: TokenCost,
    weight: WeightState,
    labels: Tensor,
    gain: float,
) -> MetaGradient:
    """`towards_token_goodness` of a call's tensors as they were captured, any precision."""
    moment = Moment(at_least_float32(x), at_least_float32(masked_output), at_least_float32(grad_output))
    return towards_token_goodness(cost, moment, Routing(match, gate, gain, x.shape[-1]), weight, counts, labels)


def towards_layer(
    match: Tensor, gate: Tensor, counts: Tensor, goodness: Tensor, gain: float, in_features: int
) -> MetaGradient:
    """`towards` a Goodness that all tokens share."""
    return towards(goodness, Routing(match, gate, gain, in_features), counts)


def _parts(sums: _ModuleSums) -> tuple[Tensor, Tensor, Tensor]:
    parts = sums.prototypes, sums.gates, sums.loss_and_tokens
    assert all(isinstance(part, Tensor) for part in parts)
    return parts  # type: ignore[return-value]


def _sum_of_squares(tensor: Tensor, counts: Tensor) -> Tensor:
    """Of each column, over the tokens that count; not picked out, for how many there are only the device knows."""
    return (at_least_float32(tensor).square() * counts[:, None]).sum(dim=0)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _whole(call: CapturedCall) -> tuple[Moment, Routing, Tensor]:
    """All tokens of a call, padding among them, and which of them count."""
    assert call.grad_output is not None
    routing, counts = _whole_routing(call)
    return Moment(_flat(call.x), _flat(call.masked_output), _flat(call.grad_output)), routing, counts


def _whole_routing(call: CapturedCall) -> tuple[Routing, Tensor]:
    routing = call.routing._replace(match=_flat(call.routing.match), gate=_flat(call.routing.gate))
    dtype = torch.promote_types(routing.match.dtype, torch.float32)
    if call.valid is None:
        return routing, torch.ones(len(routing.match), dtype=dtype, device=routing.match.device)
    return routing, call.valid.reshape(-1).to(dtype)


def _valid_routing(call: CapturedCall) -> Routing:
    return call.routing._replace(match=call.select(call.routing.match), gate=call.select(call.routing.gate))


@contextmanager
def hooks_pass(
    model: nn.Module,
    cost: LearningCost | None,
    *,
    valid: Tensor | None,
    labels: Tensor | int,
    second_moments: dict[str, Tensor],
    health: dict[str, Health] | None,
    storage: Storage = "reference",
    use_compiler: bool = False,
) -> Iterator[HooksPass]:
    """The engine, open for one step. For its arguments see LearningDynamics.

    `labels` is the global number of labels by which the task loss was divided. `second_moments` are Adam's, of W, by
    module, for the costs that need them.
    """
    engine = HooksPass(cost, labels=labels, second_moments=second_moments, health=health, use_compiler=use_compiler)
    watched = nn.Module() if cost is None and health is None else model  # a control that nobody observes is left alone
    with capture(watched, valid=valid, storage=storage, on_gradient=engine.on_gradient) as captured:
        engine._captured = captured
        yield engine
