"""What the single-pass engine computes between its matrix products: element by element, and so fit to be compiled."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from tiny_onn.compiling import compiled, compiled_amid_eager
from tiny_onn.learning_cost import TokenCost, WeightState
from tiny_onn.mas import mas_backward
from tiny_onn.meta_learning import Moment, towards_token_goodness
from tiny_onn.routing import Routing, at_least_float32


class LayerConstants(NamedTuple):
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


def forward_elementwise(x: Tensor, affine: Tensor, match: Tensor, gate: Tensor, constants: LayerConstants) -> Tensor:
    """masked_output from x, x W^T + b, x P^T and x G^T."""
    computation_output = x + affine if constants.residual else affine
    return computation_output * Routing(match, gate, constants.gain, x.shape[-1]).weights()


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
    constants: LayerConstants,
) -> Gradients:
    """Both streams' gradients from gradient = dL/d(masked_output); with `cost` None, the task trains the router."""
    routing = Routing(match, gate, constants.gain, x.shape[-1])
    computation_output = at_least_float32(x + affine if constants.residual else affine)  # rounded as forward rounded it
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


class Kernels(NamedTuple):
    """The elementwise parts, compiled or as they are."""

    forward: Callable[..., Tensor] = forward_elementwise
    backward: Callable[..., Gradients] = backward_elementwise


def compiled_kernels(*, amid_eager: bool = False) -> Kernels:
    """The parts by `torch.compile`, each once for any number of tokens; `amid_eager` also where all else is eager."""
    forward, backward = compiled(forward_elementwise, 4), compiled(backward_elementwise, 6)
    if amid_eager:
        return Kernels(compiled_amid_eager(forward), compiled_amid_eager(backward))
    return Kernels(forward, backward)
