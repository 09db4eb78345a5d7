"""Signals: what each expert was worth to a token, from the tensors of a call as the backward pass goes by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.distributed import sum_over_workers
from tiny_onn.goodness import goodness
from tiny_onn.learning_cost import LayerCost, TokenCost, WeightState
from tiny_onn.mas import mas

NO_SIGNAL = (
    1e-5  # nats per unit of computation_output; float32 rounds such a gradient, a difference of terms near 1, at 1e-7
)
_ROUNDING = 1e-6  # of float32, and a margin


class Moment(NamedTuple):
    """One call's tensors as the backward pass goes by, in float32 at least.

    `grad_output` is dL/dy and `masked_gradient` is dL/do = dL/dy / w, which closed experts have, too. The last two are
    None where no signal asks for them.
    """

    x: Float[Tensor, "n i"]
    masked_output: Float[Tensor, "n o"]
    grad_output: Float[Tensor, "n o"]
    computation_output: Float[Tensor, "n o"] | None = None
    masked_gradient: Float[Tensor, "n o"] | None = None


@dataclass(frozen=True)
class Signals:
    """Goodness of a call, and what it is made of: [n, o] per token, or [o] where the whole layer shares one."""

    goodness: Float[Tensor, "*n o"]
    contribution: Float[Tensor, "*n o"]
    relevance: Float[Tensor, "*n o"]
    cost: Float[Tensor, "*n o"]

    def as_tuple(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Goodness, contribution, relevance and cost."""
        return self.goodness, self.contribution, self.relevance, self.cost


@dataclass(frozen=True)
class Signal:
    """One way to make Goodness of a call.

    Attributes:
        measure: `measure(moment, cost [n, O]) -> [n, O]`; entries of 0 or less are no target, unless the objective is
            signed. `moment` has the gradients of the summed loss, those of a token without signal at 0. Only ratios
            within a token matter, unless the objective is signed or tokens are weighted by their signal.
        reads_masked: whether it needs `moment.computation_output` and `moment.masked_gradient`.
    """

    measure: Callable[[Moment, Tensor], Tensor]
    reads_masked: bool = False


def _goodness(moment: Moment, cost: Tensor) -> Tensor:
    return goodness(moment.masked_output.abs(), moment.grad_output.abs(), cost)


def _signed(moment: Moment, cost: Tensor) -> Tensor:
    assert moment.masked_gradient is not None
    return _fall(moment.masked_output, moment.masked_gradient)


def _opening(moment: Moment, cost: Tensor) -> Tensor:
    assert moment.computation_output is not None
    assert moment.masked_gradient is not None
    return _fall(moment.computation_output, moment.masked_gradient)


def _benefit(moment: Moment, cost: Tensor) -> Tensor:
    assert moment.computation_output is not None
    assert moment.masked_gradient is not None
    return -moment.computation_output * moment.masked_gradient


def _fall(output: Tensor, gradient: Tensor) -> Tensor:
    """relu(-output gradient); nothing of a token whose best expert is within rounding of nothing."""
    fall = torch.relu(-output * gradient)
    size = output.abs().amax(dim=-1, keepdim=True) * gradient.abs().amax(dim=-1, keepdim=True)
    return fall * (fall.amax(dim=-1, keepdim=True) > _ROUNDING * size)


def _subtractive(moment: Moment, cost: Tensor) -> Tensor:
    assert moment.masked_gradient is not None
    return mas(moment.masked_gradient.abs()) * (mas(moment.masked_output.abs()) - mas(cost))


GOODNESS = Signal(_goodness)
"""mas(mas(|o|) mas(|dL/dy|)) / mas(C): ADR-0004. It is 0 for a closed expert, which stays closed."""
SIGNED = Signal(_signed, reads_masked=True)
"""relu(-o dL/do): to first order, how much an open expert lowers the loss; experts that raise it are no target."""
OPENING = Signal(_opening, reads_masked=True)
"""relu(-y dL/do) = relu(-dL/dw): to first order, how much the loss falls as an expert's weight grows, closed or not."""
BENEFIT = Signal(_benefit, reads_masked=True)
"""-y dL/do = -dL/dw in nats, with its sign: `opening` before harm is cut off at 0. For an objective that reads Goodness
as it is: there, tokens on which more depends teach more, and what harms at some tokens and helps at others cancels."""
SUBTRACTIVE = Signal(_subtractive, reads_masked=True)
"""mas(|dL/do|) (mas(|o|) - mas(C)): later work of ADR-0004's authors (dmf-archive/Tiny-ONN, f8db4e3, 255e6fa)."""

SIGNALS: dict[str, Signal] = {
    "goodness": GOODNESS,
    "signed": SIGNED,
    "opening": OPENING,
    "benefit": BENEFIT,
    "subtractive": SUBTRACTIVE,
}


def _checked(cost: Tensor, like: Tensor) -> Tensor:
    if cost.shape != like.shape:  # it would be broadcast, and pass for a cost that all experts or tokens share
        raise ValueError(f"the learning cost has shape {list(cost.shape)}; expected {list(like.shape)}")
    return cost


@torch.no_grad()
def token_signals(signal: Signal, cost: TokenCost, moment: Moment, weight: WeightState) -> Signals:
    """The signals of every token of a call; the gradients of `moment` are those of the summed loss.

    A token whose gradient is within rounding of nothing has no signal: it counts as one whose gradient is 0. What such
    a token's Goodness is made of is noise: the query of a first token, which can choose among one key only, has a
    gradient of exactly 0 but for rounding. Goodness, being free of scale, would make a full-sized target of that noise.
    """
    grad_output = moment.grad_output * _has_signal(moment.grad_output)
    moment = moment._replace(grad_output=grad_output)
    if moment.masked_gradient is not None:
        moment = moment._replace(masked_gradient=moment.masked_gradient * _has_signal(moment.masked_gradient))
    costs = _checked(cost.measure(grad_output, moment.x, weight), grad_output)
    return Signals(signal.measure(moment, costs), moment.masked_output.abs(), grad_output.abs(), costs)


def _has_signal(gradient: Tensor) -> Tensor:
    return gradient.abs().amax(dim=-1, keepdim=True) > NO_SIGNAL


@torch.no_grad()
def layer_signals(
    squares: dict[str, tuple[Tensor, Tensor]], gradients: dict[str, Tensor], cost: LayerCost
) -> dict[str, Signals]:
    """One set of signals for each module, from the valid tokens of all its calls on all workers.

    Args:
        squares: by module, masked_output^2 and grad_output^2 summed over this worker's valid tokens, [o] each. One
            reduction adds up the workers'; contribution and relevance are the roots.
        gradients: by module, W.grad [o, i], which DDP has already summed; the cost is measured on it.
    """
    parts = [part for pair in squares.values() for part in pair]
    reduced = iter(sum_over_workers(torch.cat(parts)).split([len(part) for part in parts]))
    by_layer = {}
    for name in squares:
        contribution, relevance = next(reduced).sqrt(), next(reduced).sqrt()
        costs = _checked(cost.measure(gradients[name]), relevance)
        by_layer[name] = Signals(goodness(contribution, relevance, costs), contribution, relevance, costs)
    return by_layer
