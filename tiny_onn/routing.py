"""Routing, from the two products of a call to the weights of its experts; forwards and backwards."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.mas import mas, mas_backward


class Routing(NamedTuple):
    """The two products that decide which experts speak, match = x P^T and gate = x G^T, and the constants with them.

        routing_logits   l = gain (match / sqrt(I) - mas(gate))
        routing_weights  w = mas(l)

    Computed in float32 at least, whatever precision autocast left the products in.
    """

    match: Float[Tensor, "*b o"]
    gate: Float[Tensor, "*b o"]
    gain: float
    in_features: int

    def logits(self) -> Float[Tensor, "*b o"]:
        """l."""
        match, gate = at_least_float32(self.match), at_least_float32(self.gate)
        return match * (self.gain / math.sqrt(self.in_features)) - self.gain * mas(gate)

    def weights(self) -> Float[Tensor, "*b o"]:
        """w."""
        return mas(self.logits())

    def backward(self, logits_gradient: Float[Tensor, "*b o"]) -> tuple[Float[Tensor, "*b o"], Float[Tensor, "*b o"]]:
        """(dL/d match, dL/d gate) from dL/dl."""
        gate = at_least_float32(self.gate)
        match_gradient = logits_gradient * (self.gain / math.sqrt(self.in_features))
        return match_gradient, mas_backward(logits_gradient * -self.gain, gate, mas(gate))


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it is narrower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
