"""What a step asks of an engine: the two of them, `hooks` and `fused`, are one thing to LearningDynamics."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from tiny_onn.layers import SparseProtoLinear
from tiny_onn.meta_learning import Lesson
from tiny_onn.regulation import Seen
from tiny_onn.routing_health import Health


@runtime_checkable
class Engine(Protocol):
    """Open during the forward passes and the one backward pass of a step.

    `seen` by module, of the layers under a regulation: the step's own sums over all workers, after `finish`.
    """

    seen: dict[str, Seen]

    def health(self) -> dict[str, Health] | None:
        """Routing health by module, where it was asked for: this worker's share, after the backward pass."""

    def use_valid(self, valid: Bool[Tensor, " *b"] | None, tokens: Tensor | int | None = None) -> None:
        """Says which tokens of the forward passes from here on count (False for padding). None: all.

        Args:
            tokens: their number over all workers, where it is known; a longer last message carries it otherwise.
        """

    def finish(self, task_loss: Tensor) -> tuple[Tensor, Tensor]:
        """After the backward pass: P.grad and G.grad hold the meta-loss's global gradient, where the arm has one.

        Returns:
            task loss and meta-loss, summed over workers; the meta-loss is NaN in an arm without Goodness.
        """


def scalar(value: Tensor | int, like: Tensor) -> Tensor:
    """`value` as a tensor of no axes, of `like`'s type and on its device.

    A number is written there by the device itself: to send it over would be to wait for all that it has still to do.
    """
    return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)


def share_of(lesson: Lesson, weights_sum: Tensor, modules: int) -> Tensor:
    """What one unit of a token's weight is in the mean over tokens, then modules."""
    if lesson.goodness is not None and lesson.goodness.token_weight == "signal":
        weights_sum = torch.where(weights_sum > 0, weights_sum, 1)
    else:
        weights_sum = weights_sum.clamp(min=1)
    return 1 / (weights_sum * modules)


def seen_of(tally: Tensor) -> Seen:
    """What a regulation has to know, of a tally of `tiny_onn.meta_learning`."""
    return Seen(tally[2], tally[3], tally[4:])


def set_router_gradients(
    layer: SparseProtoLinear, prototypes: Tensor | None, gates: Tensor | None, share: Tensor
) -> None:
    """P.grad and G.grad from sums over tokens; `share` is what one token's part of the meta-loss is.

    What is frozen gets none, for an optimizer steps along a gradient wherever it finds one.
    """
    for parameter, gradient in ((layer.proto_weight, prototypes), (layer.gate_param, gates)):
        if parameter is not None and parameter.requires_grad:
            assert gradient is not None
            parameter.grad = (gradient * share).view_as(parameter).to(parameter.dtype)


def add_router_gradients(layer: SparseProtoLinear, sums: list[Tensor], share: Tensor) -> None:
    """As `set_router_gradients`, to what the task loss had P and G learn; `sums` of P and, if there is one, of G."""
    for parameter, gradient in zip((layer.proto_weight, layer.gate_param), sums, strict=False):
        if parameter is not None and parameter.requires_grad:
            learnt = (gradient * share).view_as(parameter).to(parameter.dtype)
            parameter.grad = learnt if parameter.grad is None else parameter.grad + learnt
