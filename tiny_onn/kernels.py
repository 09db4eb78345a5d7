"""The elementwise parts of the single-pass engine's forward and backward, as pure functions that can be compiled."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from tiny_onn.compiling import compiled, compiled_amid_eager
from tiny_onn.health_sums import CallSums, call_sums
from tiny_onn.learning_cost import WeightState
from tiny_onn.meta_learning import Lesson, signals_of, teach_from_call
from tiny_onn.regulation import RegulationState
from tiny_onn.routing import Routing, Rule, at_least_float32
from tiny_onn.signals import Moment


class LayerConstants(NamedTuple):
    """The constants of a layer: how it routes, what teaches it, and how much of the task loss its router learns."""

    rule: Rule
    residual: bool
    lesson: Lesson
    task: float = 0.0
    needs_router: bool = True
    reads_masked: bool = False


class Gradients(NamedTuple):
    """What leaves a call's backward, but for the matrix products.

    `output` is dL/d(computation_output). `match` and `gate` are the task loss's gradients of x P^T and x G^T, which go
    on to x; `router_match` and `router_gate` are the meta-loss's, which P and G learn from. None is a zero that nobody
    need multiply. `tally` as of RouterGradient.
    """

    output: Float[Tensor, "n o"]
    match: Float[Tensor, "n o"] | None
    gate: Float[Tensor, "n o"] | None
    router_match: Float[Tensor, "n o"] | None
    router_gate: Float[Tensor, "n o"] | None
    tally: Float[Tensor, " t"]


def _computation_output(x: Tensor, affine: Tensor, constants: LayerConstants) -> Tensor:
    return x + affine if constants.residual else affine


def routing_of(
    match: Tensor | None,
    gate: Tensor | None,
    like: Tensor,
    threshold: Tensor | None,
    chosen: Tensor | None,
    constants: LayerConstants,
) -> Routing:
    """The routing of a call from what it kept; `like` is of the shape that `match` would have."""
    return Routing(like if match is None else match, gate, constants.rule, threshold, chosen)


def threshold_of(state: RegulationState | None, constants: LayerConstants) -> Tensor | None:
    """What the regulation subtracts from the logits; None if it does not."""
    regulation = constants.lesson.regulation
    return state.threshold if state is not None and regulation is not None and regulation.shifts else None


def forward_elementwise(
    x: Tensor,
    affine: Tensor,
    match: Tensor | None,
    gate: Tensor | None,
    threshold: Tensor | None,
    constants: LayerConstants,
) -> tuple[Tensor, Tensor | None]:
    """(masked_output, chosen) from x, x W^T + b, x P^T and x G^T."""
    computation_output = _computation_output(x, affine, constants)
    routing = routing_of(match, gate, affine, threshold, None, constants).choose(computation_output)
    return computation_output * routing.weights(), routing.chosen


def backward_elementwise(
    gradient: Tensor,
    x: Tensor,
    affine: Tensor,
    match: Tensor | None,
    gate: Tensor | None,
    chosen: Tensor | None,
    counts: Tensor,
    tokens: Tensor | None,
    labels: Tensor,
    weight: WeightState,
    state: RegulationState | None,
    constants: LayerConstants,
) -> Gradients:
    """Both streams' gradients from gradient = dL/d(masked_output)."""
    routing = routing_of(match, gate, affine, threshold_of(state, constants), chosen, constants)
    # Rounded as forward rounded it.
    computation_output = at_least_float32(_computation_output(x, affine, constants))
    gradient, x = at_least_float32(gradient), at_least_float32(x)
    weights = routing.weights()
    grad_output = gradient if constants.rule.gate.straight_through else gradient * weights
    task = routing.logits_gradient(gradient * computation_output, weights) if constants.needs_router else None
    task_match, task_gate = (None, None) if task is None else routing.backward(task)
    masked = (computation_output, gradient) if constants.reads_masked else ()
    moment = Moment(x, computation_output * weights, grad_output, *masked)
    taught = teach_from_call(constants.lesson, moment, routing, state, weight, counts, tokens, labels)
    narrow = affine.dtype

    def to_narrow(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(narrow)

    return Gradients(
        grad_output,
        to_narrow(task_match),
        to_narrow(task_gate),
        to_narrow(taught.match),
        to_narrow(taught.gate),
        taught.tally,
    )


def observe_elementwise(
    gradient: Tensor,
    x: Tensor,
    affine: Tensor,
    match: Tensor | None,
    gate: Tensor | None,
    chosen: Tensor | None,
    counts: Tensor,
    ranked: Tensor,
    labels: Tensor,
    weight: WeightState,
    state: RegulationState | None,
    constants: LayerConstants,
) -> CallSums:
    """What a call adds to routing health, from gradient = dL/d(masked_output); see `ranked_places`."""
    routing = routing_of(match, gate, affine, threshold_of(state, constants), chosen, constants)
    weights = routing.weights()
    if constants.lesson.goodness is None:
        return call_sums(weights, counts, ranked, None)
    computation_output = at_least_float32(_computation_output(x, affine, constants))
    gradient, x = at_least_float32(gradient), at_least_float32(x)
    grad_output = gradient if constants.rule.gate.straight_through else gradient * weights
    masked = (computation_output, gradient) if constants.reads_masked else ()
    moment = Moment(x, computation_output * weights, grad_output, *masked)
    signals = signals_of(constants.lesson.goodness, moment, weight, labels)
    return call_sums(weights, counts, ranked, signals.as_tuple())


class Kernels(NamedTuple):
    """The elementwise parts, compiled or as they are."""

    forward: Callable[..., tuple[Tensor, Tensor | None]] = forward_elementwise
    backward: Callable[..., Gradients] = backward_elementwise
    observe: Callable[..., CallSums] = observe_elementwise


def compiled_kernels(*, amid_eager: bool = False) -> Kernels:
    """The parts by `torch.compile`, each once for any number of tokens; `amid_eager` also where all else is eager."""
    kernels = Kernels(
        compiled(forward_elementwise, 4), compiled(backward_elementwise, 7), compiled(observe_elementwise, 8)
    )
    if not amid_eager:
        return kernels
    forward, backward, observe = kernels
    return Kernels(compiled_amid_eager(forward), compiled_amid_eager(backward), compiled_amid_eager(observe))
