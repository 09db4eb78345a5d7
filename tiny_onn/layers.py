"""SparseProtoLinear: a linear layer whose output rows, the experts, speak only where they are routed to."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tiny_onn.routing import Routing


class SparseProtoCall(NamedTuple):
    """What one call of a SparseProtoLinear computed."""

    x: Float[Tensor, "*b i"]
    computation_output: Float[Tensor, "*b o"]
    masked_output: Float[Tensor, "*b o"]
    routing: Routing


class CallPoint(nn.Module):
    """Passes a call through. It is there to be hooked: an observer sees here what a layer keeps to itself."""

    def forward(self, call: SparseProtoCall) -> Tensor:
        """The call's masked output."""
        return call.masked_output


class SparseProtoLinear(nn.Module):
    """The ADR's sparse linear layer.

        computation_output  y = x + x W^T + b                 (without `residual`: y = x W^T + b)
        routing_logits      l = gain (x P^T / sqrt(I) - mas(x G^T))
        masked_output       o = y mas(l)

    Parameters are float32 or float64. Routing is computed in float32 at least, and so is what is returned: for narrower
    products, run it under autocast.

    Args:
        in_features: I.
        out_features: O, the number of experts.
        residual: add x to y; needs I == O. By default exactly when I == O.
        gain: scales the routing logits.
        router_learns_from_task: let the task loss's gradient into P and G (the control arm). Otherwise they are
            constants to it, and its gradient only flows *through* the routing weights to x.

    Attributes:
        single_pass: None, or what computes a call's masked output in the stead of `forward` where gradients are wanted;
            see `tiny_onn.fused`.

    Raises:
        ValueError: `residual` with I != O.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        residual: bool | None = None,
        gain: float = 1.0,
        router_learns_from_task: bool = False,
    ) -> None:
        super().__init__()
        self.residual = in_features == out_features if residual is None else residual
        if self.residual and in_features != out_features:
            raise ValueError(f"residual needs in_features == out_features, found {in_features} and {out_features}")
        self.in_features, self.out_features = in_features, out_features
        self.gain = gain
        self.router_learns_from_task = router_learns_from_task
        self.mu_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.mu_bias = nn.Parameter(torch.zeros(out_features))
        self.proto_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.gate_param = nn.Parameter(torch.zeros(out_features, in_features))
        self.call_point = CallPoint()
        self.single_pass: Callable[[SparseProtoLinear, Tensor], Tensor] | None = None
        nn.init.kaiming_uniform_(self.mu_weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.proto_weight, a=math.sqrt(5))

    def routing(self, x: Float[Tensor, "*b i"], *, learn: bool) -> Routing:
        """Which experts speak for each token; with `learn` False, P and G are constants."""
        prototypes = self.proto_weight if learn else self.proto_weight.detach()
        gates = self.gate_param if learn else self.gate_param.detach()
        match, gate = nn.functional.linear(x, prototypes), nn.functional.linear(x, gates)
        return Routing(match, gate, self.gain, self.in_features)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The masked output."""
        if self.single_pass is not None and torch.is_grad_enabled():
            return self.single_pass(self, x)
        computation_output = nn.functional.linear(x, self.mu_weight, self.mu_bias)
        if self.residual:
            computation_output = x + computation_output
        routing = self.routing(x, learn=self.router_learns_from_task)
        masked_output = computation_output * routing.weights()
        return self.call_point(SparseProtoCall(x, computation_output, masked_output, routing))

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, residual={self.residual}"


def sparse_layers(model: nn.Module) -> dict[str, SparseProtoLinear]:
    """Every SparseProtoLinear of a model by its qualified name, a shared one once, in the order of named_modules()."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseProtoLinear)}


def router_parameters(model: nn.Module) -> list[nn.Parameter]:
    """P and G of every SparseProtoLinear: the stream that the meta-loss updates."""
    return [p for layer in sparse_layers(model).values() for p in (layer.proto_weight, layer.gate_param)]


def computation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every other parameter: the stream that the task loss updates."""
    router = {id(p) for p in router_parameters(model)}
    return [p for p in model.parameters() if id(p) not in router]
