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

from tiny_onn.arm import Arm
from tiny_onn.capture import (
    HELD,
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
from tiny_onn.engine import add_router_gradients, scalar, seen_of, set_router_gradients, share_of
from tiny_onn.health_sums import CallSums, call_sums, ranked_places
from tiny_onn.layers import sparse_layers
from tiny_onn.learning_cost import LayerCost, WeightState
from tiny_onn.meta_learning import Lesson, RouterGradient, lesson_of, signals_of, teach, teach_from_call, wide
from tiny_onn.regulation import RegulationState, Seen
from tiny_onn.routing import Routing, Rule, at_least_float32
from tiny_onn.routing_health import Health, HealthOfStep
from tiny_onn.signals import Moment, layer_signals


@dataclass
class _ModuleSums:
    """Of one module, over its calls: the router's gradients and the tally; this worker's."""

    router: list[Tensor] = field(default_factory=list)  # of P and, if there is one, of G
    tally: Tensor | float = 0.0
    squares: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    weight_gradient: Tensor | float = 0.0  # of a frozen W, which autograd leaves out
    calls: list[CapturedCall] = field(default_factory=list)


class HooksPass:
    """An Engine on top of `capture`."""

    def __init__(
        self,
        captured: Captured,
        arm: Arm,
        *,
        labels: Tensor | int,
        second_moments: dict[str, Tensor],
        observe: bool,
        use_compiler: bool,
        compile_measures: bool,
    ) -> None:
        self._arm, self._labels, self._second_moments = arm, labels, second_moments
        self._observed = HealthOfStep() if observe else None
        self.seen: dict[str, Seen] = {}
        self._lessons = {
            name: lesson_of(arm, layer.regulation, layer.density) for name, layer in captured.layers.items()
        }
        self._sums: dict[str, _ModuleSums] = defaultdict(_ModuleSums)
        self._captured = captured
        self._teach: Callable[..., RouterGradient] = compiled(teach_tokens, 9) if use_compiler else teach_tokens
        self._teach_shared: Callable[..., RouterGradient] = compiled(teach_shared, 4) if use_compiler else teach_shared
        compiles = use_compiler and compile_measures
        self._observe: Callable[..., CallSums] = compiled(observe_tokens, 10) if compiles else observe_tokens
        self._observe_shared: Callable[..., CallSums] = compiled(observe_shared, 5) if compiles else observe_shared
        self._ranked: tuple[Tensor | None, int, Tensor] | None = None

    def use_valid(self, valid: Tensor | None, tokens: Tensor | int | None = None) -> None:
        """See Engine; the number of tokens is counted here and goes with the reduction of the gradients."""
        self._captured.use_valid(valid)

    def on_gradient(self, call: CapturedCall) -> None:
        """Makes what use can be made of a call as its gradient arrives, and lets go of the rest."""
        if torch.is_grad_enabled():
            raise CaptureError(WITHOUT_CREATE_GRAPH)
        name, arm, lesson = call.module_name, self._arm, self._lessons[call.module_name]
        sums = self._sums[name]
        if isinstance(arm.cost, LayerCost):
            moment, _, counts = _whole(call)
            sums.squares.append(
                (_sum_of_squares(moment.masked_output, counts), _sum_of_squares(moment.grad_output, counts))
            )
            if not call.module.mu_weight.requires_grad:
                rows = at_least_float32(moment.grad_output) * counts[:, None]
                sums.weight_gradient = sums.weight_gradient + rows.T @ at_least_float32(moment.x)
            sums.calls.append(call)
            call.let_go("masked_output", "grad_output", "computation_output", "masked_gradient")
            return
        weight = WeightState(call.module.mu_weight.detach(), self._second_moments.get(name))
        learns = lesson.has_gradient or lesson.regulation is not None
        if learns or self._observed is not None:
            moment, routing, counts = _whole(call)
            labels, state = scalar(self._labels, counts), call.module.regulation_state
            of_call = (*moment, routing.match, routing.gate, routing.chosen, counts)
            if self._observed is not None:
                of_layer = routing.threshold, lesson, routing.rule, weight, labels
                self._observed.add(name, self._observe(*of_call, self._ranked_places(call, counts), *of_layer))
        if learns:
            self._add(call, self._teach(*of_call, routing.threshold, lesson, routing.rule, state, weight, labels))
        call.let_go(*HELD)

    def health(self) -> dict[str, Health] | None:
        """See Engine."""
        return None if self._observed is None else self._observed.by_module()

    def _ranked_places(self, call: CapturedCall, counts: Tensor) -> Tensor:
        """See `ranked_places`; found once for all calls with a mask."""
        if self._ranked is None or self._ranked[0] is not call.valid or self._ranked[1] != len(counts):
            places = ranked_places(call.valid, len(counts), counts.device)
            self._ranked = call.valid, len(counts), places
        return self._ranked[2]

    def finish(self, task_loss: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine. One reduction over the workers; one more, of 2 numbers an expert, for a cost a layer."""
        self._captured.calls()  # raises where one got no gradient
        task_loss = task_loss.detach().reshape(1)
        taught = any(lesson.has_gradient or lesson.regulation is not None for lesson in self._lessons.values())
        names = [name for name in self._captured.layers if name in self._sums]
        if not names and self._arm.teacher.goodness is not None:
            # A meta-loss of 0 would look like a router that has learned all there is.
            raise CaptureError(f"no SparseProtoLinear was called in this step, or none was seen: {WITHOUT_COMPILER}")
        if not taught:
            both = torch.cat([task_loss, torch.full_like(task_loss, torch.nan)])  # the losses, as in other arms
            return sum_over_workers(both)[0], both[1]
        if isinstance(self._arm.cost, LayerCost):
            self._from_layer_goodness(self._arm.cost, names)
        parts = [part for name in names for part in (self._tally(name), *self._sums[name].router)]
        dtype = torch.promote_types(task_loss.dtype, parts[0].dtype) if parts else task_loss.dtype
        flat = [part.reshape(-1).to(dtype) for part in (*parts, task_loss)]
        message = sum_over_workers(torch.cat(flat))
        reduced = iter(message.split([len(part) for part in flat]))
        meta_loss = message.new_zeros(())
        for name in names:
            layer, lesson, tally = self._captured.layers[name], self._lessons[name], next(reduced)
            share = share_of(lesson, tally[1], len(names))
            router = [next(reduced) for _ in self._sums[name].router]
            if lesson.regulation is not None:
                self.seen[name] = seen_of(tally)
            if self._arm.teacher.task and layer.task_reaches_router:
                for parameter in (layer.proto_weight, layer.gate_param):
                    if parameter is not None and parameter.grad is not None and self._arm.teacher.task != 1:
                        parameter.grad = parameter.grad * self._arm.teacher.task
                add_router_gradients(layer, router, share)
            elif router:
                set_router_gradients(layer, router[0], router[1] if len(router) > 1 else None, share)
            meta_loss = meta_loss + tally[0] * share
        if self._arm.teacher.goodness is None:
            meta_loss = torch.full_like(meta_loss, torch.nan)
        return next(reduced)[0], meta_loss

    def _tally(self, name: str) -> Tensor:
        tally = self._sums[name].tally
        assert isinstance(tally, Tensor)
        return tally

    def _from_layer_goodness(self, cost: LayerCost, names: list[str]) -> None:
        squares, gradients, frozen = {}, {}, {}
        for name in names:
            contributions, relevances = zip(*self._sums[name].squares, strict=True)
            squares[name] = (torch.stack(contributions).sum(dim=0), torch.stack(relevances).sum(dim=0))
            gradient, own = self._captured.layers[name].mu_weight.grad, self._sums[name].weight_gradient
            if isinstance(own, Tensor):
                frozen[name] = own
            elif gradient is None:
                raise RuntimeError(f"{name!r} has no weight gradient; a cost of granularity 'layer' is measured on it")
            else:
                gradients[name] = gradient
        gradients |= _summed(frozen)
        signals = layer_signals(squares, gradients, cost)
        for name in names:
            lesson = self._lessons[name]
            for call in self._sums[name].calls:
                routing, counts = _whole_routing(call)
                of_call = routing.match, routing.gate, routing.chosen, counts
                if self._observed is not None:
                    ranked = self._ranked_places(call, counts)
                    seen = self._observe_shared(
                        *of_call, ranked, routing.threshold, routing.rule, signals[name].as_tuple()
                    )
                    self._observed.add(name, seen)
                self._add(
                    call,
                    self._teach_shared(
                        *of_call,
                        routing.threshold,
                        lesson,
                        routing.rule,
                        call.module.regulation_state,
                        signals[name].goodness,
                    ),
                )
                call.let_go("x", "routing")

    def _add(self, call: CapturedCall, taught: RouterGradient) -> None:
        """The products with x, in the precision in which the forward pass took them."""
        sums = self._sums[call.module_name]
        dtype = call.routing.match.dtype
        x = _flat(call.x).to(dtype)
        products = []
        with torch.autocast(x.device.type, enabled=False):
            for each, parameter in ((taught.match, call.module.proto_weight), (taught.gate, call.module.gate_param)):
                if each is not None and parameter is not None:
                    each = each.to(dtype)
                    products.append(at_least_float32(each.sum(dim=0) if parameter.ndim == 1 else each.T @ x))
        pairs = zip(sums.router, products, strict=True) if sums.router else ((0.0, each) for each in products)
        sums.router = [before + each for before, each in pairs]
        sums.tally = sums.tally + taught.tally


def teach_tokens(
    x: Tensor,
    masked_output: Tensor,
    grad_output: Tensor,
    computation_output: Tensor | None,
    masked_gradient: Tensor | None,
    match: Tensor,
    gate: Tensor | None,
    chosen: Tensor | None,
    counts: Tensor,
    threshold: Tensor | None,
    lesson: Lesson,
    rule: Rule,
    state: RegulationState | None,
    weight: WeightState,
    labels: Tensor,
) -> RouterGradient:
    """`teach_from_call` of a call's tensors as they were captured, any precision."""
    moment = wide(Moment(x, masked_output, grad_output, computation_output, masked_gradient))
    routing = Routing(match, gate, rule, threshold, chosen)
    return teach_from_call(lesson, moment, routing, state, weight, counts, None, labels)


def teach_shared(
    match: Tensor,
    gate: Tensor | None,
    chosen: Tensor | None,
    counts: Tensor,
    threshold: Tensor | None,
    lesson: Lesson,
    rule: Rule,
    state: RegulationState | None,
    goodness: Tensor,
) -> RouterGradient:
    """`teach` with a Goodness that all tokens share."""
    return teach(lesson, goodness, Routing(match, gate, rule, threshold, chosen), state, counts)


def observe_tokens(
    x: Tensor,
    masked_output: Tensor,
    grad_output: Tensor,
    computation_output: Tensor | None,
    masked_gradient: Tensor | None,
    match: Tensor,
    gate: Tensor | None,
    chosen: Tensor | None,
    counts: Tensor,
    ranked: Tensor,
    threshold: Tensor | None,
    lesson: Lesson,
    rule: Rule,
    weight: WeightState,
    labels: Tensor,
) -> CallSums:
    """What a call's tensors as they were captured, any precision, add to routing health."""
    weights = Routing(match, gate, rule, threshold, chosen).weights()
    if lesson.goodness is None:
        return call_sums(weights, counts, ranked, None)
    moment = wide(Moment(x, masked_output, grad_output, computation_output, masked_gradient))
    return call_sums(weights, counts, ranked, signals_of(lesson.goodness, moment, weight, labels).as_tuple())


def observe_shared(
    match: Tensor,
    gate: Tensor | None,
    chosen: Tensor | None,
    counts: Tensor,
    ranked: Tensor,
    threshold: Tensor | None,
    rule: Rule,
    signals: tuple[Tensor, Tensor, Tensor, Tensor],
) -> CallSums:
    """`observe_tokens` with signals that all tokens share."""
    return call_sums(Routing(match, gate, rule, threshold, chosen).weights(), counts, ranked, signals)


def _summed(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each added up over the workers, in one message."""
    if not gradients:
        return {}
    flat = sum_over_workers(torch.cat([each.reshape(-1) for each in gradients.values()]))
    parts = flat.split([each.numel() for each in gradients.values()])
    return {name: part.view_as(each) for (name, each), part in zip(gradients.items(), parts, strict=True)}


def _sum_of_squares(tensor: Tensor, counts: Tensor) -> Tensor:
    """Of each column, over the tokens that count; not picked out, for how many there are only the device knows."""
    return (at_least_float32(tensor).square() * counts[:, None]).sum(dim=0)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _whole(call: CapturedCall) -> tuple[Moment, Routing, Tensor]:
    """All tokens of a call, padding among them, and which of them count."""
    assert call.grad_output is not None
    routing, counts = _whole_routing(call)
    return Moment(*map(_flat_or_none, _of_moment(call))), routing, counts  # type: ignore[arg-type]


def _of_moment(call: CapturedCall) -> tuple[Tensor | None, ...]:
    return call.x, call.masked_output, call.grad_output, call.computation_output, call.masked_gradient


def _flat_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _flat(tensor)


def _whole_routing(call: CapturedCall) -> tuple[Routing, Tensor]:
    routing = _over_tokens(call.routing, _flat)
    dtype = torch.promote_types(routing.match.dtype, torch.float32)
    if call.valid is None:
        return routing, torch.ones(len(routing.match), dtype=dtype, device=routing.match.device)
    return routing, call.valid.reshape(-1).to(dtype)


def _over_tokens(routing: Routing, change: Callable[[Tensor], Tensor]) -> Routing:
    """`change` made to what a routing holds for each token; a G of one number an expert is none of it."""
    gate, chosen = routing.gate, routing.chosen
    return routing._replace(
        match=change(routing.match),
        gate=gate if gate is None or gate.ndim == 1 else change(gate),
        chosen=None if chosen is None else change(chosen),
    )


@contextmanager
def hooks_pass(
    model: nn.Module,
    arm: Arm,
    *,
    valid: Tensor | None,
    labels: Tensor | int,
    second_moments: dict[str, Tensor],
    observe: bool,
    storage: Storage = "reference",
    use_compiler: bool = False,
    compile_measures: bool = True,
) -> Iterator[HooksPass]:
    """The engine, open for one step. For its arguments see LearningDynamics.

    `labels` is the global number of labels by which the task loss was divided. `second_moments` are Adam's, of W, by
    module, for the costs that need them.
    """
    needed = observe or any(
        lesson.has_gradient or lesson.regulation is not None
        for lesson in (lesson_of(arm, layer.regulation, layer.density) for layer in sparse_layers(model).values())
    )
    watched = model if needed else nn.Module()  # an arm of which nothing is to be captured is left alone
    # The engine is made when the capture is open; no gradient can arrive before.
    opened: list[HooksPass] = []
    with capture(
        watched,
        valid=valid,
        storage=storage,
        on_gradient=lambda call: opened[0].on_gradient(call),
        masked=arm.reads_masked,
    ) as captured:
        engine = HooksPass(
            captured,
            arm,
            labels=labels,
            second_moments=second_moments,
            observe=observe,
            use_compiler=use_compiler,
            compile_measures=compile_measures,
        )
        opened.append(engine)
        yield engine
