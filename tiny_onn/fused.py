"""The single-pass engine: Goodness where dL/dy flows past, the meta-loss's gradient as the gradient of P and G.

In the local scheme nothing needs to leave the backward pass (docs/architecture.md, "Two engines"). Each call of a
SparseProtoLinear is one node of the graph. Its backward gets dL/d(masked_output), forms the computation gradients and,
in closed form, the gradient of the meta-loss, and hands on g^T x, m^T x, n^T x as the gradients of W, P and G: the
matrix products of a plain step and no more. DDP reduces them as it does any other gradient. Between forward and
backward a call keeps x and its three products.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tiny_onn.arm import Arm
from tiny_onn.capture import UNKNOWN_MASK, WITHOUT_CREATE_GRAPH, CaptureError, Masks
from tiny_onn.compiling import any_size
from tiny_onn.distributed import sum_over_workers
from tiny_onn.engine import add_router_gradients, scalar, seen_of, set_router_gradients, share_of
from tiny_onn.health_sums import CallSums, ranked_places
from tiny_onn.kernels import Kernels, LayerConstants, compiled_kernels, threshold_of
from tiny_onn.layers import SparseProtoLinear, sparse_layers
from tiny_onn.learning_cost import WeightState
from tiny_onn.meta_learning import lesson_of, tally_size
from tiny_onn.regulation import RegulationState, Seen
from tiny_onn.routing_health import Health, HealthOfStep
from tiny_onn.torch_private import in_backward_pass


class Plan(NamedTuple):
    """What a call's node needs beside its tensors. `observe` is called in each backward, where health is wanted.

    `router_learns` is False where neither stream reaches P and G: they get no gradient then.
    """

    constants: LayerConstants
    kernels: Kernels
    arrived: Callable[[], None]
    observe: Callable[[CallSums], None] | None
    router_learns: bool = True


class OfTheStep(NamedTuple):
    """What a call takes from its step, constants to autograd: which tokens count, and what the layer remembers."""

    counts: Tensor
    tokens: Tensor | None  # their global number, where it is known beforehand
    labels: Tensor
    second_moment: Tensor | None
    state: RegulationState | None
    ranked: Tensor | None = None  # in a step that is observed: see `ranked_places`


class Leaves(NamedTuple):
    """What a call gets gradients for; of `Node.backward`, those gradients.

    `meta_prototypes`, `meta_gates` and `tally` are there for their gradients alone, which autograd adds up over calls:
    of a router with two teachers, P's and G's own gradients are the task loss's, and the meta ones the meta-loss's.
    """

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    prototypes: Tensor | None
    gates: Tensor | None
    meta_prototypes: Tensor | None
    meta_gates: Tensor | None
    tally: Tensor | None


class Call(NamedTuple):
    """What a call's node needs that has no gradient."""

    of_the_step: OfTheStep
    plan: Plan


class Node(torch.autograd.Function):
    """One call: `Node.apply(call, *leaves)`. Autograd sees a gradient's tensor only as an argument of its own, so
    `leaves` are unpacked on the way in, and have their names again inside."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> Tensor:
        x, weight, bias, prototypes, gates, *_ = Leaves(*tensors)
        assert x is not None
        assert weight is not None
        assert bias is not None
        assert prototypes is not None
        of_the_step, plan = call
        kind = x.device.type
        narrows = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # which autocast leaves as it is
        dtype = torch.get_autocast_dtype(kind) if narrows else x.dtype
        constants, state = plan.constants, of_the_step.state
        match = gate = None
        with torch.autocast(kind, enabled=False):
            narrow = x.to(dtype)
            affine = nn.functional.linear(narrow, weight.to(dtype), bias.to(dtype))
            if constants.needs_router:
                match = nn.functional.linear(narrow, prototypes.to(dtype))
                if gates is not None:
                    gate = gates if gates.ndim == 1 else nn.functional.linear(narrow, gates.to(dtype))
            threshold = threshold_of(state, constants)
            masked_output, chosen = plan.kernels.forward(x, affine, match, gate, threshold, constants)
        ctx.save_for_backward(x, affine, match, gate, chosen, weight, prototypes, gates)
        # Not saved as the tensors above are: a call that checkpointing computes anew keeps the mask that it first had.
        ctx.call = call
        return masked_output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise CaptureError(WITHOUT_CREATE_GRAPH)
        call: Call = ctx.call
        plan, constants = call.plan, call.plan.constants
        x, affine, match, gate, chosen, weight, prototypes, gates = ctx.saved_tensors
        counts, tokens, labels, second_moment, state, _ = call.of_the_step
        known = WeightState(weight, second_moment)
        with torch.autocast(x.device.type, enabled=False):
            elementwise = plan.kernels.backward(
                grads[0], x, affine, match, gate, chosen, counts, tokens, labels, known, state, constants
            )
            if plan.observe is not None:
                of_call = grads[0], x, affine, match, gate, chosen, counts, call.of_the_step.ranked
                plan.observe(plan.kernels.observe(*of_call, labels, known, state, constants))
            dtype = affine.dtype
            output, narrow = elementwise.output.to(dtype), x.to(dtype)
            # Sums of products, not addmm: a compiler adds them up in one pass, where addmm copies what it adds to.
            x_gradient = output @ weight.to(dtype)
            if elementwise.match is not None:
                x_gradient += elementwise.match @ prototypes.to(dtype)
            if elementwise.gate is not None and gates is not None and gates.ndim == 2:
                x_gradient += elementwise.gate @ gates.to(dtype)
            if constants.residual:
                x_gradient += output
            if not torch.compiler.is_compiling():
                plan.arrived()

            def of(products: Tensor | None, parameter: Tensor | None) -> Tensor | None:
                if products is None or parameter is None:
                    return None
                each = products.sum(dim=0) if parameter.ndim == 1 else products.T @ narrow
                return each.to(weight.dtype)

            router: list[Tensor | None] = [None, None]
            meta: list[Tensor | None] = [None, None]
            if plan.router_learns:
                meta = [of(elementwise.router_match, prototypes), of(elementwise.router_gate, gates)]
                if constants.task:
                    router = [of(elementwise.match, prototypes), of(elementwise.gate, gates)]
                    if constants.task != 1:
                        router = [None if each is None else each * constants.task for each in router]
                else:
                    router, meta = meta, [None, None]
            gradients = Leaves(
                x=x_gradient.to(x.dtype),
                weight=(output.T @ narrow).to(weight.dtype),
                bias=elementwise.output.sum(dim=0).to(weight.dtype),
                prototypes=router[0],
                gates=router[1],
                meta_prototypes=meta[0],
                meta_gates=meta[1],
                tally=elementwise.tally,
            )
            return None, *gradients


class LayerPass:
    """One layer's part of a FusedPass: what its `forward` hands its calls to, and what came of them."""

    def __init__(
        self, layer: SparseProtoLinear, plan: Plan, labels: Tensor | int, second_moment: Tensor | None
    ) -> None:
        weight, lesson = layer.mu_weight, plan.constants.lesson
        self.plan = plan._replace(arrived=self.arrived)
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        size = tally_size(lesson, layer.out_features)
        self.tally = torch.zeros(size, dtype=self.dtype, device=weight.device, requires_grad=True)
        self.meta_prototypes: Tensor | None = None
        self.meta_gates: Tensor | None = None
        if plan.constants.task and lesson.has_gradient:  # two teachers, whose gradients are on different scales
            self.meta_prototypes = torch.zeros_like(layer.proto_weight).requires_grad_(True)
            if layer.gate_param is not None:
                self.meta_gates = torch.zeros_like(layer.gate_param).requires_grad_(True)
        self.labels = scalar(labels, self.tally)
        self.second_moment, self.state = second_moment, layer.regulation_state
        self.valid: Tensor | None = None
        self.tokens: Tensor | None = None
        self.ranked: Tensor | None = None  # with a mask of valid tokens
        self.calls = self.arrivals = 0
        self.masks = Masks()

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
            if not in_backward_pass():
                self.calls += 1  # in a backward pass, checkpointing merely fills the saved tensors of a call anew
            elif self.masks.pending > 1:
                valid = None  # it is needed where a gradient comes to this very call, and not where one is filled anew
                lesson = plan.constants.lesson
                if lesson.has_gradient or lesson.regulation is not None or plan.observe is not None:
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
        ranked = None
        if plan.observe is not None:
            ranked = ranked_places(None, len(flat), x.device) if self.ranked is None else self.ranked
        of_the_step = OfTheStep(counts, self.tokens, self.labels, self.second_moment, self.state, ranked)
        weights = layer.mu_weight, layer.mu_bias, layer.proto_weight, layer.gate_param
        leaves = Leaves(flat, *weights, self.meta_prototypes, self.meta_gates, self.tally)
        return Node.apply(Call(of_the_step, plan), *leaves).view(*x.shape[:-1], layer.out_features)


class FusedPass:
    """An Engine: every SparseProtoLinear's call is one node."""

    def __init__(
        self,
        layers: dict[str, SparseProtoLinear],
        arm: Arm,
        *,
        labels: Tensor | int,
        second_moments: dict[str, Tensor],
        observe: bool,
        kernels: Kernels,
    ) -> None:
        self._observed = HealthOfStep() if observe else None
        self._layers, self._arm = layers, arm
        self.seen: dict[str, Seen] = {}
        self._tokens_are_global = False
        self.passes: dict[str, LayerPass] = {}
        for name, layer in layers.items():
            constants = constants_of(layer, arm)
            observer = None if self._observed is None else partial(self._observed.add, name)
            learns = constants.lesson.has_gradient or layer.task_reaches_router
            plan = Plan(constants, kernels, lambda: None, observer, learns)
            self.passes[name] = LayerPass(layer, plan, labels, second_moments.get(name))

    def use_valid(self, valid: Tensor | None, tokens: Tensor | int | None = None) -> None:
        """See Engine. Where each token counts alike and `tokens` is known, no message need carry their number."""
        self._tokens_are_global = tokens is not None and all(
            _counts_alone(each.plan.constants) for each in self.passes.values()
        )
        ranked = None
        if valid is not None:
            any_size(valid)
            if self._observed is not None:
                ranked = ranked_places(valid, valid.numel(), valid.device)
        for each in self.passes.values():
            each.ranked = ranked
            each.masks.next()
            each.valid = valid
            each.tokens = scalar(tokens, each.labels) if tokens is not None and self._tokens_are_global else None

    def health(self) -> dict[str, Health] | None:
        """See Engine."""
        return None if self._observed is None else self._observed.by_module()

    def finish(self, task_loss: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine. One reduction over the workers, of the tallies; gradients are global already, but for those of a
        router with two teachers, whose second goes with it.

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
        lessons = {name: self.passes[name].plan.constants.lesson for name in tallies}
        if not tallies and self._arm.teacher.goodness is not None:
            raise CaptureError("no SparseProtoLinear was called in this step, or none whose output reaches the loss")
        if not any(lesson.has_gradient or lesson.regulation for lesson in lessons.values()):
            both = torch.stack([task_loss, torch.full_like(task_loss, torch.nan)])
            task_loss, nothing = sum_over_workers(both).unbind()
            return task_loss, nothing
        if self._tokens_are_global:
            losses, weights = torch.stack(list(tallies.values())).to(task_loss.dtype).unbind(dim=1)
            shares = 1 / (weights.clamp(min=1) * len(tallies))
            task_loss, meta_loss = sum_over_workers(torch.stack([task_loss, (losses * shares).sum()])).unbind()
            for name, share in zip(tallies, shares.unbind(), strict=True):
                set_router_gradients(self._layers[name], *_gradients(self._layers[name]), share)
            return task_loss, meta_loss
        meta = {name: [p for p in self._meta_gradients(name) if p is not None] for name in tallies}
        parts = [task_loss.reshape(1), *tallies.values(), *(p.reshape(-1) for each in meta.values() for p in each)]
        message = sum_over_workers(torch.cat([part.to(task_loss.dtype) for part in parts]))
        task_loss, *reduced = message.split([len(part) for part in parts])
        rest = iter(reduced[len(tallies) :])
        meta_loss = message.new_zeros(())
        for name, tally in zip(tallies, reduced, strict=False):
            layer, lesson = self._layers[name], lessons[name]
            share = share_of(lesson, tally[1], len(tallies))
            meta_loss = meta_loss + tally[0] * share
            if lesson.regulation is not None:
                self.seen[name] = seen_of(tally)
            if meta[name]:
                add_router_gradients(layer, [next(rest) for _ in meta[name]], share)
            elif lesson.has_gradient:
                set_router_gradients(layer, *_gradients(layer), share)
        if self._arm.teacher.goodness is None:
            meta_loss = torch.full_like(meta_loss, torch.nan)
        return task_loss.squeeze(0), meta_loss

    def _meta_gradients(self, name: str) -> tuple[Tensor | None, ...]:
        each = self.passes[name]
        return tuple(None if leaf is None else leaf.grad for leaf in (each.meta_prototypes, each.meta_gates))


def _gradients(layer: SparseProtoLinear) -> tuple[Tensor | None, Tensor | None]:
    return layer.proto_weight.grad, None if layer.gate_param is None else layer.gate_param.grad


def _counts_alone(constants: LayerConstants) -> bool:
    """Whether a layer's tally is its meta-loss and the number of its tokens, and nothing else."""
    lesson = constants.lesson
    uniform = lesson.goodness is not None and lesson.goodness.token_weight == "uniform"
    return uniform and lesson.regulation is None and not constants.task


def constants_of(layer: SparseProtoLinear, arm: Arm) -> LayerConstants:
    """What a call of the layer needs to know of it and of the arm."""
    rule = layer.rule
    lesson = lesson_of(arm, layer.regulation, layer.density)
    task = arm.teacher.task if layer.task_reaches_router else 0.0
    return LayerConstants(rule, layer.residual, lesson, task, rule.gate.needs_router(rule.k), arm.reads_masked)


@contextmanager
def fused_pass(
    model: nn.Module,
    arm: Arm,
    *,
    valid: Tensor | None,
    tokens: Tensor | int | None,
    labels: Tensor | int,
    second_moments: dict[str, Tensor],
    observe: bool,
    use_compiler: bool = False,
    compile_measures: bool = True,
) -> Iterator[FusedPass]:
    """The engine, open for one step. For its arguments see LearningDynamics and `hooks_pass`.

    On leaving, whatever happened, every layer computes as it did before.
    """
    layers = sparse_layers(model)
    kernels = compiled_kernels(amid_eager=observe) if use_compiler else Kernels()
    if not compile_measures:
        kernels = kernels._replace(observe=Kernels().observe)
    engine = FusedPass(layers, arm, labels=labels, second_moments=second_moments, observe=observe, kernels=kernels)
    engine.use_valid(valid, tokens)
    for name, layer in layers.items():
        layer.single_pass = engine.passes[name]
    try:
        yield engine
    finally:
        for layer in layers.values():
            layer.single_pass = None
