"""The single-pass engine: Goodness where dL/dy flows past, the meta-loss's gradient as the gradient of P and G.

In the local scheme nothing needs to leave the backward pass (DESIGN, fact 6). Each call of a SparseProtoLinear is one
node of the graph. Its backward gets dL/d(masked_output), forms the computation gradients and, in closed form, the
gradient of the meta-loss, and hands on g^T x, m^T x, n^T x as the gradients of W, P and G: the matrix products of a
plain step and no more. DDP reduces them as it does any other gradient. Between forward and backward a call keeps x and
its three products.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tiny_onn.capture import UNKNOWN_MASK, WITHOUT_CREATE_GRAPH, CaptureError, Masks
from tiny_onn.compiling import any_size
from tiny_onn.distributed import sum_over_workers
from tiny_onn.engine import observe, scalar, set_router_gradients
from tiny_onn.kernels import Kernels, LayerConstants, compiled_kernels, forward_elementwise
from tiny_onn.layers import SparseProtoLinear, sparse_layers
from tiny_onn.learning_cost import TokenCost, WeightState
from tiny_onn.routing import Routing, at_least_float32
from tiny_onn.routing_health import Health
from tiny_onn.signals import token_signals


class Plan(NamedTuple):
    """What a call's node needs beside its tensors. `observe` is called in each backward, where health is wanted.

    `router_learns` is False in a control whose layer keeps the task loss from P and G: they get no gradient then.
    """

    constants: LayerConstants
    cost: TokenCost | None
    kernels: Kernels
    arrived: Callable[[], None]
    observe: Callable[..., None] | None
    router_learns: bool = True


class Node(torch.autograd.Function):
    """One call. `tally` [2] is there for its gradient, which autograd adds up: (meta-loss, `tokens`)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        prototypes: Tensor,
        gates: Tensor,
        tally: Tensor,
        counts: Tensor,
        tokens: Tensor,
        labels: Tensor,
        second_moment: Tensor | None,
        plan: Plan,
    ) -> Tensor:
        kind = x.device.type
        narrows = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # which autocast leaves as it is
        dtype = torch.get_autocast_dtype(kind) if narrows else x.dtype
        with torch.autocast(kind, enabled=False):
            narrow = x.to(dtype)
            affine = nn.functional.linear(narrow, weight.to(dtype), bias.to(dtype))
            match = nn.functional.linear(narrow, prototypes.to(dtype))
            gate = nn.functional.linear(narrow, gates.to(dtype))
            masked_output = plan.kernels.forward(x, affine, match, gate, plan.constants)
        ctx.save_for_backward(x, affine, match, gate, weight, prototypes, gates)
        # Not saved as the tensors above are: a call that checkpointing computes anew keeps the mask that it first had.
        ctx.of_the_step = counts, tokens, labels, second_moment
        ctx.plan = plan
        return masked_output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise CaptureError(WITHOUT_CREATE_GRAPH)
        plan: Plan = ctx.plan
        x, affine, match, gate, weight, prototypes, gates = ctx.saved_tensors
        counts, tokens, labels, second_moment = ctx.of_the_step
        state = WeightState(weight, second_moment)
        with torch.autocast(x.device.type, enabled=False):
            found = plan.kernels.backward(
                grads[0], x, affine, match, gate, counts, labels, state, plan.cost, plan.constants
            )
            if plan.observe is not None:
                plan.observe(x, affine, match, gate, found.output, counts, labels, state)
            dtype = match.dtype
            output, narrow = found.output.to(dtype), x.to(dtype)
            # Sums of products, not addmm: a compiler adds them up in one pass, where addmm copies what it adds to.
            x_gradient = output @ weight.to(dtype)
            x_gradient += found.match @ prototypes.to(dtype)
            x_gradient += found.gate @ gates.to(dtype)
            if plan.constants.residual:
                x_gradient += output
            if not torch.compiler.is_compiling():
                plan.arrived()
            router: tuple[Tensor | None, Tensor | None] = None, None
            if plan.router_learns:
                router = (
                    (found.router_match.T @ narrow).to(weight.dtype),
                    (found.router_gate.T @ narrow).to(weight.dtype),
                )
            return (
                x_gradient.to(x.dtype),
                (output.T @ narrow).to(weight.dtype),
                found.output.sum(dim=0).to(weight.dtype),
                *router,
                torch.stack([found.loss, tokens]),
                None,
                None,
                None,
                None,
                None,
            )


class LayerPass:
    """One layer's part of a FusedPass: what its `forward` hands its calls to, and what came of them."""

    def __init__(self, layer: SparseProtoLinear, labels: Tensor | int, second_moment: Tensor | None) -> None:
        weight = layer.mu_weight
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        self.tally = torch.zeros(2, dtype=self.dtype, device=weight.device, requires_grad=True)
        self.labels = scalar(labels, self.tally)
        self.second_moment = second_moment
        self.valid: Tensor | None = None
        self.tokens: Tensor | None = None
        self.calls = self.arrivals = 0
        self.masks = Masks()
        self.plan: Plan

    def arrived(self) -> None:
        """Counts a call whose gradient came."""
        self.arrivals += 1
        self.masks.arrived()

    def arrived_without_mask(self) -> None:
        """Refuses a call whose gradient came."""
        raise CaptureError(f"a layer {UNKNOWN_MASK}")

    def __call__(self, layer: SparseProtoLinear, x: Tensor) -> Tensor:
        """The layer's masked output for x; called by its `forward`."""
        valid, plan = self.valid, self.plan
        if not torch.compiler.is_compiling():
            if torch._C._current_graph_task_id() == -1:
                self.calls += 1  # in a backward pass, checkpointing merely fills the saved tensors of a call anew
            elif self.masks.pending > 1:
                valid = None  # it is needed where a gradient comes to this very call, and not where one is filled anew
                if plan.cost is not None or plan.observe is not None:
                    plan = plan._replace(arrived=self.arrived_without_mask)
        if valid is not None and valid.shape != x.shape[:-1]:
            raise CaptureError(
                f"the mask of valid tokens has shape {tuple(valid.shape)}, but a layer was called with tokens of "
                f"shape {tuple(x.shape[:-1])}"
            )
        flat = x.reshape(-1, x.shape[-1])
        if valid is None:
            counts = torch.ones(flat.shape[0], dtype=self.dtype, device=x.device)
        else:
            counts = valid.reshape(-1).to(self.dtype)
        tokens = counts.sum() if self.tokens is None else self.tokens
        of_the_step = counts, tokens, self.labels, self.second_moment
        weights = layer.mu_weight, layer.mu_bias, layer.proto_weight, layer.gate_param
        return Node.apply(flat, *weights, self.tally, *of_the_step, plan).view(*x.shape[:-1], layer.out_features)


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
        kernels: Kernels,
    ) -> None:
        self.health, self._layers, self._cost = health, layers, cost
        self._tokens_are_global = False
        self.passes: dict[str, LayerPass] = {}
        for name, layer in layers.items():
            each = LayerPass(layer, labels, second_moments.get(name))
            of_layer = LayerConstants(layer.gain, layer.residual)
            observer = None if health is None else partial(_observe, health, name, of_layer, cost)
            learns = cost is not None or layer.router_learns_from_task
            each.plan = Plan(of_layer, cost, kernels, each.arrived, observer, learns)
            self.passes[name] = each

    def use_valid(self, valid: Tensor | None, tokens: Tensor | int | None = None) -> None:
        """See Engine. Without `tokens`, this worker's are counted, and the last reduction adds up the workers'."""
        self._tokens_are_global = tokens is not None
        if valid is not None:
            any_size(valid)
        for each in self.passes.values():
            each.masks.next()
            each.valid = valid
            each.tokens = None if tokens is None else scalar(tokens, each.labels)

    def finish(self, task_loss: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine. One reduction over the workers, of the losses; the gradients are global already.

        Raises:
            CaptureError: the task loss's gradient did not reach a call (names the module), or there was no call.
        """
        for name, each in self.passes.items():
            if each.arrivals < each.calls:
                raise CaptureError(
                    f"{each.calls - each.arrivals} of {each.calls} calls of {name!r} got no gradient: their output "
                    "does not reach the loss, or backward() has not run"
                )
        tallies = {name: each.tally.grad for name, each in self.passes.items() if each.tally.grad is not None}
        task_loss = task_loss.detach()
        if self._cost is not None and not tallies:
            raise CaptureError("no SparseProtoLinear was called in this step, or none whose output reaches the loss")
        if self._cost is None:
            task_loss, nothing = sum_over_workers(
                torch.stack([task_loss, torch.full_like(task_loss, torch.nan)])
            ).unbind()
            return task_loss, nothing
        losses, tokens = torch.stack(list(tallies.values())).to(task_loss.dtype).unbind(dim=1)
        if self._tokens_are_global:
            shares = 1 / (tokens.clamp(min=1) * len(tallies))
            task_loss, meta_loss = sum_over_workers(torch.stack([task_loss, (losses * shares).sum()])).unbind()
        else:
            message = sum_over_workers(torch.cat([task_loss.reshape(1), losses, tokens]))
            task_loss, (losses, tokens) = message[0], message[1:].chunk(2)
            shares = 1 / (tokens.clamp(min=1) * len(tallies))
            meta_loss = (losses * shares).sum()
        for name, share in zip(tallies, shares.unbind(), strict=True):
            layer = self._layers[name]
            set_router_gradients(layer, layer.proto_weight.grad, layer.gate_param.grad, share)
        return task_loss, meta_loss


def _observe(
    health: dict[str, Health],
    name: str,
    constants: LayerConstants,
    cost: TokenCost | None,
    x: Tensor,
    affine: Tensor,
    match: Tensor,
    gate: Tensor,
    grad_output: Tensor,
    counts: Tensor,
    labels: Tensor,
    state: WeightState,
) -> None:
    """Routing health of a call's valid tokens, as its backward goes by."""
    places = counts.nonzero().squeeze(1)
    x, affine, match, gate, grad_output = (t.index_select(0, places) for t in (x, affine, match, gate, grad_output))
    signals = None
    if cost is not None:
        masked_output = at_least_float32(forward_elementwise(x, affine, match, gate, constants))
        signals = token_signals(cost, at_least_float32(x), masked_output, grad_output * labels, state)
    observe(health, name, Routing(match, gate, constants.gain, x.shape[-1]), signals)


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
    kernels = compiled_kernels(amid_eager=health is not None) if use_compiler else Kernels()
    engine = FusedPass(layers, cost, labels=labels, second_moments=second_moments, health=health, kernels=kernels)
    engine.use_valid(valid, tokens)
    for name, layer in layers.items():
        layer.single_pass = engine.passes[name]
    try:
        yield engine
    finally:
        for layer in layers.values():
            layer.single_pass = None
