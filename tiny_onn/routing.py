"""Routing, from the products of a call to the weights of its experts; forwards and backwards."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.gates import MAS, Gate, choose
from tiny_onn.mas import mas, mas_backward


class Rule(NamedTuple):
    """The constants of a layer's routing: `k` experts at most speak for a token; None: no limit."""

    gain: float
    in_features: int
    gate: Gate = MAS
    k: int | None = None


class Routing(NamedTuple):
    """What decides which experts speak: two products, match = x P^T and gate = x G^T, and what goes with them.

        routing_logits   l = gain (match / sqrt(I) - mas(gate)) - threshold
        routing_weights  w = rule.gate of l and of the k chosen experts

    Computed in float32 at least, whatever precision autocast left the products in.

    Attributes:
        match: where the gate needs no router, any tensor of its shape.
        gate: x G^T; or G itself, [o], one number an expert; or None without G.
        threshold: [o] or None; what a regulation asks of each expert's logit.
        chosen: 1 for the k experts of each token; None without a limit.
    """

    match: Float[Tensor, "*b o"]
    gate: Float[Tensor, "*g o"] | None
    rule: Rule
    threshold: Float[Tensor, " o"] | None = None
    chosen: Tensor | None = None

    def logits(self) -> Float[Tensor, "*b o"]:
        """l."""
        match = at_least_float32(self.match)
        logits = match * (self.rule.gain / math.sqrt(self.rule.in_features))
        if self.gate is not None:
            logits = logits - self.rule.gain * mas(at_least_float32(self.gate))
        return logits if self.threshold is None else logits - self.threshold.to(logits.dtype)

    def choose(self, computation_output: Float[Tensor, "*b o"]) -> "Routing":
        """With the experts that the rule's k leaves each token."""
        if self.rule.k is None:
            return self
        by_magnitude = self.rule.gate.score == "magnitude"
        scores = computation_output.detach().abs() if by_magnitude else self.logits().detach()
        return self._replace(chosen=choose(scores, self.rule.k))

    def weights(self) -> Float[Tensor, "*b o"]:
        """w."""
        logits = self.logits()
        return self.rule.gate.weights(logits, None if self.chosen is None else self.chosen.to(logits.dtype))

    def logits_gradient(
        self, weights_gradient: Float[Tensor, "*b o"], weights: Float[Tensor, "*b o"]
    ) -> Float[Tensor, "*b o"] | None:
        """dL/dl from dL/dw; None where the gate passes nothing on."""
        if self.rule.gate.backward is None:
            return None
        logits = self.logits()
        chosen = None if self.chosen is None else self.chosen.to(logits.dtype)
        return self.rule.gate.backward(weights_gradient, logits, weights, chosen)

    def backward(
        self, logits_gradient: Float[Tensor, "*b o"]
    ) -> tuple[Float[Tensor, "*b o"], Float[Tensor, "*b o"] | None]:
        """(dL/d match, dL/d gate) from dL/dl, token by token; the latter None without G."""
        match_gradient = logits_gradient * (self.rule.gain / math.sqrt(self.rule.in_features))
        if self.gate is None:
            return match_gradient, None
        gate = at_least_float32(self.gate).expand_as(logits_gradient)
        return match_gradient, mas_backward(logits_gradient * -self.rule.gain, gate, mas(gate))


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it is narrower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
