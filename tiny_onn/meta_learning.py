"""From a call's tensors to the gradients of P and G, in closed form: what both engines do for every call.

All of it is elementwise over [tokens, experts] with sums over experts, so it is written as pure functions that
`torch.compile` can turn into a few passes over memory.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.arm import Arm, Goodness
from tiny_onn.learning_cost import TokenCost, WeightState
from tiny_onn.mas import mas
from tiny_onn.regulation import Regulation, RegulationState
from tiny_onn.routing import Routing, at_least_float32
from tiny_onn.signals import Moment, Signals, token_signals


class RouterGradient(NamedTuple):
    """What the meta-loss of some tokens, and a regulation's penalty, have P and G learn; sums over valid tokens.

    Attributes:
        tally: [2], or [4 + o] under a regulation: the meta-loss; the sum of the tokens' weights, by which it and the
            gradients are to be divided; then the fields of `regulation.Seen`.
        match, gate: with respect to x P^T and to x G^T (or, token by token, G itself); None where nothing is to be
            learnt, the latter also without G.
    """

    tally: Float[Tensor, " t"]
    match: Float[Tensor, "n o"] | None
    gate: Float[Tensor, "n o"] | None


class Lesson(NamedTuple):
    """What teaches a layer's router besides the task loss: constants of the layer."""

    goodness: Goodness | None
    weight: float
    regulation: Regulation | None
    target: float

    @property
    def has_gradient(self) -> bool:
        """Whether P and G learn something from it."""
        return self.goodness is not None or (self.regulation is not None and self.regulation.penalty is not None)


def lesson_of(arm: Arm, regulation: Regulation | None, density: float | None) -> Lesson:
    """A layer's, from its arm, its regulation and its density."""
    return Lesson(arm.teacher.goodness, arm.teacher.weight, regulation, 1.0 if density is None else density)


def tally_size(lesson: Lesson, experts: int) -> int:
    """The length of `RouterGradient.tally`."""
    return 2 if lesson.regulation is None else 4 + experts


@torch.no_grad()
def signals_of(goodness: Goodness, moment: Moment, weight: WeightState, labels: Tensor) -> Signals:
    """Every token's own signals. `labels` makes of the gradients those of the summed loss."""
    assert isinstance(goodness.cost, TokenCost)
    masked = moment.masked_gradient
    moment = moment._replace(
        grad_output=moment.grad_output * labels, masked_gradient=None if masked is None else masked * labels
    )
    return token_signals(goodness.signal, goodness.cost, moment, weight)


@torch.no_grad()
def teach(
    lesson: Lesson,
    values: Float[Tensor, "*n o"] | None,
    routing: Routing,
    state: RegulationState | None,
    counts: Float[Tensor, " n"],
    tokens: Tensor | None = None,
) -> RouterGradient:
    """What a call's tokens teach their router.

    Args:
        values: Goodness, [n, o] or [o] shared by all tokens; None without.
        state: of the regulation, where there is one.
        counts: 1 for a token that counts, 0 for padding.
        tokens: goes into the tally in the place of the sum of `counts`, where it is given.
    """
    goodness, regulation = lesson.goodness, lesson.regulation
    loss, weights_sum, gradient = counts.new_zeros(()), counts.sum() if tokens is None else tokens, None
    if goodness is not None:
        assert values is not None
        scores, token_weights = values if goodness.objective.signed else mas(values), counts
        if regulation is not None and regulation.sharpens:
            assert state is not None
            scores = scores ** (goodness.sharpness * state.pressure.to(scores.dtype))
        elif goodness.sharpness != 1:
            scores = scores**goodness.sharpness
        if goodness.token_weight == "signal":
            token_weights = counts * values.amax(dim=-1).clamp(min=0)
            weights_sum = token_weights.sum()
        loss, gradient = goodness.objective.value_and_gradient(routing.logits(), scores, token_weights)
        if lesson.weight != 1:
            gradient = gradient * lesson.weight
    if regulation is not None and regulation.penalty is not None:
        assert state is not None
        _, of_penalty = regulation.penalty(routing, state, lesson.target)
        of_penalty = of_penalty * counts[:, None]
        gradient = of_penalty if gradient is None else gradient + of_penalty
    tally = torch.stack([loss, weights_sum])
    if regulation is not None:
        active = (routing.weights() > 0).to(counts.dtype) * counts[:, None]
        scale = (routing.logits().abs().mean(dim=-1) * counts).sum()
        tally = torch.cat([tally, torch.stack([counts.sum(), scale]), active.sum(dim=0)])
    if gradient is None:
        return RouterGradient(tally, None, None)
    return RouterGradient(tally, *routing.backward(gradient))


@torch.no_grad()
def teach_from_call(
    lesson: Lesson,
    moment: Moment,
    routing: Routing,
    state: RegulationState | None,
    weight: WeightState,
    counts: Float[Tensor, " n"],
    tokens: Tensor | None,
    labels: Tensor,
) -> RouterGradient:
    """`teach` with every token's own Goodness, or without any."""
    values = None
    if lesson.goodness is not None:
        values = signals_of(lesson.goodness, moment, weight, labels).goodness
    return teach(lesson, values, routing, state, counts, tokens)


def wide(moment: Moment) -> Moment:
    """In float32 at least."""
    return Moment(*(None if tensor is None else at_least_float32(tensor) for tensor in moment))  # type: ignore[arg-type]
