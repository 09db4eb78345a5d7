"""The single-pass engine: Goodness where dL/dy flows past, the meta-loss's gradient as the gradient of P and G.

In the local scheme nothing needs to leave the backward pass (DESIGN, fact 6). Each call of a SparseProtoLinear is one
node of the graph. Its backward gets dL/d(masked_output), forms the computation gradients and, in closed form, the
gradient of the meta-loss, and hands on g^T x, m^T x, n^T x as the gradients of W, P and G: the matrix products of a
plain step and no more. DDP reduces them as it does any other gradient. Between forward and backward a call keeps x and
its three products.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tiny_onn.capture import CaptureError
from tiny_onn.compiling import compiled
from tiny_onn.distributed import sum_over_workers
from tiny_onn.engine import observe, set_router_gradients
from tiny_onn.layers import SparseProtoLinear, sparse_layers
from tiny_onn.learning_cost import TokenCost, WeightState
from tiny_onn.mas import mas_backward
from tiny_onn.meta_learning import Moment, towards_token_goodness
from tiny_onn.routing import Routing, at_least_float32
from tiny_onn.routing_health import Health
from tiny_onn.signals import token_signals


class Shape(NamedTuple):
    """The constants of a layer."""

    gain: float
    residual: bool


class Gradients(NamedTuple):
    """What leaves a call's backward, but for the matrix products.

    `output` is dL/d(computation_output). `match` and `gate` are the task loss's gradients of x P^T and x G^T, which go
    on to x; `router_match` and `router_gate` are those that P and G learn from. `loss` is the meta-loss, summed.
    """

    output: Float[Tensor, "n o"]
    match: Float[Tensor, "n o"]
    gate: Float[Tensor, "n o"]
    router_match: Float[Tensor, "n o"]
    router_gate: Float[Tensor, "n o"]
    loss: Float[Tensor, ""]


def forward_elementwise(x: Tensor, affine: Tensor, match: Tensor, gate: Tensor, shape: Shape) -> Tensor:
    """masked_output from x, x W^T + b, x P^T and x G^T."""
    computation_output = x + affine if shape.residual else affine
    return computation_output * Routing(match, gate, shape.gain, x.shape[-1]).weights()


def backward_elementwise(
    gradient: Tensor,
    x: Tensor,
    affine: Tensor,
    match: Tensor,
    gate: Tensor,
    counts: Tensor,
    labels: Tensor,
    weight: WeightState,
    cost: TokenCost | None,
    shape: Shape,
) -> Gradients:
    """Both streams' gradients from gradient = dL/d(masked_output); with `cost` None, the task trains the router."""
    routing = Routing(match, gate, shape.gain, x.shape[-1])
    computation_output = at_least_float32(x + affine if shape.residual else affine)  # rounded as forward rounded it
    gradient, x = at_least_float32(gradient), at_least_float32(x)
    weights = routing.weights()
    grad_output = gradient * weights
    task_match, task_gate = routing.backward(mas_backward(gradient * computation_output, routing.logits(), weights))
    if cost is None:
        router_match, router_gate, loss = task_match, task_gate, labels.new_zeros(())
    else:
        moment = Moment(x, computation_output * weights, grad_output)
        loss, router_match, router_gate = towards_token_goodness(cost, moment, routing, weight, counts, labels)
    narrow = match.dtype
    return Gradients(
        grad_output,
        task_match.to(narrow),
        task_gate.to(narrow),
        router_match.to(narrow),
        router_gate.to(narrow),
        loss,
    )


class _Kernels(NamedTuple):
    forward: Callable[..., Tensor]
    backward: Callable[..., Gradients]


_EAGER = _Kernels(forward_elementwise, backward_elementwise)


@dataclass(frozen=True)
class _Call:
    """What a call's node needs and has no gradient."""

    name: str
    shape: Shape
    cost: TokenCost | None
    counts: Float[Tensor, " n"]
    labels: Float[Tensor, ""]
    tokens: Float[Tensor, ""]
    second_moment: Tensor | None
    kernels: _Kernels
    health: dict[str, Health] | None
    arrived: "Counter[str]"


class _Node(torch.autograd.Function):
    """One call. `tally` [2] is there for its gradient, which autograd adds up: (meta-loss, tokens over all workers)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        prototypes: Tensor,
        gates: Tensor,
        tally: Tensor,
        call: _Call,
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            narrow = x.to(dtype)
            affine = nn.functional.linear(narrow, weight.to(dtype), bias.to(dtype))
            match, gate = (nn.functional.linear(narrow, each.to(dtype)) for each in (prototypes, gates))
            masked_output = call.kernels.forward(x, affine, match, gate, call.shape)
        ctx.save_for_backward(x, affine, match, gate, weight, prototypes, gates)
        ctx.call = call
        return masked_output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        x, affine, match, gate, weight, prototypes, gates = ctx.saved_tensors
        state = WeightState(weight, call.second_moment)
        with torch.autocast(x.device.type, enabled=False):
            found = call.kernels.backward(
                grads[0], x, affine, match, gate, call.counts, call.labels, state, call.cost, call.shape
            )
            if call.health is not None:
                _observe(call, x, affine, match, gate, found.output, state)
            dtype = match.dtype
            output, narrow = found.output.to(dtype), x.to(dtype)
            x_gradient = (
                torch.addmm(output, output, weight.to(dtype)) if call.shape.residual else output @ weight.to(dtype)
            )
            x_gradient.addmm_(found.match, prototypes.to(dtype)).addmm_(found.gate, gates.to(dtype))
            call.arrived[call.name] += 1
            return (
                x_gradient.to(x.dtype),
                (output.T @ narrow).to(weight.dtype),
                found.output.sum(dim=0).to(weight.dtype),
                (found.router_match.T @ narrow).to(weight.dtype),
                (found.router_gate.T @ narrow).to(weight.dtype),
                torch.stack([found.loss, call.tokens]),
                None,
            )


def _observe(
    call: _Call, x: Tensor, affine: Tensor, match: Tensor, gate: Tensor, grad_output: Tensor, state: WeightState
) -> None:
    places = call.counts.nonzero().squeeze(1)
    x, affine, match, gate, grad_output = (
        at_least_float32(t.index_select(0, places)) for t in (x, affine, match, gate, grad_output)
    )
    routing = Routing(match, gate, call.shape.gain, x.shape[-1])
    signals = None
    if call.cost is not None:
        masked_output = forward_elementwise(x, affine, match, gate, call.shape)
        signals = token_signals(call.cost, x, masked_output, grad_output * call.labels, state)
    observe(call.health, call.name, routing, signals)


class FusedPass:
    """An Engine: every SparseProtoLinear's call is one node."""

    def __init__(
        self,
        layers: dict[str, SparseProtoLinear],
        cost: TokenCost | None,
        *,
        labels: Tensor | int,
        second_moments: dict[str, Tensor],
        health: dict[str, Health] | None,
        use_compiler: bool,
    ) -> None:
        self.health = health
        self._layers, self._cost, self._labels, self._second_moments = layers, cost, labels, second_moments
        self._names = {id(layer): name for name, layer in layers.items()}
        self._kernels = (
            _Kernels(compiled(forward_elementwise, 4), compiled(backward_elementwise, 6)) if use_compiler else _EAGER
        )
        self._valid: Tensor | None = None
        self._counts: Tensor | None = None
        self._tokens: Tensor | int | None = None
        self._calls: Counter[str] = Counter()
        self._arrived: Counter[str] = Counter()
        self._tallies: dict[str, Tensor] = {}

    def use_valid(self, valid: Tensor | None, tokens: Tensor | int | None = None) -> None:
        """See Engine."""
        self._valid, self._tokens, self._counts = valid, tokens, None

    def __call__(self, layer: SparseProtoLinear, x: Tensor) -> Tensor:
        """The layer's masked output for x; called by its `forward`."""
        name = self._names[id(layer)]
        flat = x.reshape(-1, x.shape[-1])
        counts, tokens = self._counted(x, name)
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies[name] = torch.zeros(2, dtype=counts.dtype, device=x.device, requires_grad=True)
        if torch._C._current_graph_task_id() == -1:  # else: checkpointing fills the saved tensors of a call anew
            self._calls[name] += 1
        call = _Call(
            name,
            Shape(layer.gain, layer.residual),
            self._cost,
            counts,
            torch.as_tensor(self._labels, dtype=counts.dtype, device=x.device),
            tokens,
            self._second_moments.get(name),
            self._kernels,
            self.health,
            self._arrived,
        )
        weights = layer.mu_weight, layer.mu_bias, layer.proto_weight, layer.gate_param
        return _Node.apply(flat, *weights, tally, call).view(*x.shape[:-1], layer.out_features)

    def _counted(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """(1 or 0 for each token, their number over all workers), worked out once for each forward pass."""
        shape = x.shape[:-1]
        if self._valid is not None and self._valid.shape != shape:
            raise CaptureError(
                f"the mask of valid tokens has shape {tuple(self._valid.shape)}, but {name!r} was called with tokens "
                f"of shape {tuple(shape)}"
            )
        if self._counts is None or len(self._counts) != shape.numel():
            dtype = torch.promote_types(x.dtype, torch.float32)
            valid = self._valid
            self._counts = (
                valid.reshape(-1).to(dtype)
                if valid is not None
                else torch.ones(shape.numel(), dtype=dtype, device=x.device)
            )
            if self._tokens is None:
                self._tokens = sum_over_workers(self._counts.sum())
            self._tokens = torch.as_tensor(self._tokens, dtype=dtype, device=x.device)
        assert isinstance(self._tokens, Tensor)
        return self._counts, self._tokens

    def finish(self, task_loss: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine. One reduction over the workers, of two numbers; the gradients are global already.

        Raises:
            CaptureError: the task loss's gradient did not reach a call; names the module.
        """
        for name, calls in self._calls.items():
            if self._arrived[name] < calls:
                raise CaptureError(
                    f"{calls - self._arrived[name]} of {calls} calls of {name!r} got no gradient: their output does "
                    "not reach the loss, or backward() has not run"
                )
        tallies = {name: tally.grad for name, tally in self._tallies.items() if tally.grad is not None}
        task_loss = task_loss.detach()
        meta_loss = task_loss.new_zeros(())
        if self._cost is not None:
            for name, (loss, tokens) in tallies.items():
                layer, share = self._layers[name], 1 / (tokens.clamp(min=1) * len(tallies))
                assert layer.proto_weight.grad is not None
                assert layer.gate_param.grad is not None
                set_router_gradients(layer, layer.proto_weight.grad, layer.gate_param.grad, share)
                meta_loss = meta_loss + loss * share
        task_loss, meta_loss = sum_over_workers(torch.stack([task_loss, meta_loss.to(task_loss)])).unbind()
        return task_loss, meta_loss if self._cost is not None else meta_loss * torch.nan


@contextmanager
def fused_pass(
    model: nn.Module,
    cost: TokenCost | None,
    *,
    valid: Tensor | None,
    tokens: Tensor | int | None,
    labels: Tensor | int,
    second_moments: dict[str, Tensor],
    health: dict[str, Health] | None,
    use_compiler: bool = False,
) -> Iterator[FusedPass]:
    """The engine, open for one step. For its arguments see LearningDynamics and `hooks_pass`.

    On leaving, whatever happened, every layer computes as it did before.
    """
    layers = sparse_layers(model)
    engine = FusedPass(
        layers, cost, labels=labels, second_moments=second_moments, health=health, use_compiler=use_compiler
    )
    engine.use_valid(valid, tokens)
    for layer in layers.values():
        layer.single_pass = engine
    try:
        yield engine
    finally:
        for layer in layers.values():
            layer.single_pass = None
