"""SparseProtoLinear: a linear layer whose output rows, the experts, speak only where they are routed to."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tiny_onn.gates import MAS, Gate, experts_of
from tiny_onn.regulation import Regulation, RegulationState, first_state
from tiny_onn.routing import Routing, Rule

if TYPE_CHECKING:
    from tiny_onn.distributed import Reductions

GateParameter = Literal["off", "zero", "uniform", "scalar"]


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

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks: a copy of a watched model (an average of weights, a snapshot) is not watched."""
        return {**self.__dict__, "_forward_hooks": type(self._forward_hooks)()}


class SparseProtoLinear(nn.Module):
    """The ADR's sparse linear layer.

        computation_output  y = x + x W^T + b                 (without `residual`: y = x W^T + b)
        routing_logits      l = gain (x P^T / sqrt(I) - mas(x G^T))
        masked_output       o = y w,                          w = mas(l), or another gate's weights

    Parameters are float32 or float64. Routing is computed in float32 at least, and so is what is returned: for narrower
    products, run it under autocast.

    Args:
        in_features: I.
        out_features: O, the number of experts.
        residual: add x to y; needs I == O. By default exactly when I == O.
        gain: scales the routing logits.
        router_learns_from_task: let the task loss's gradient into P and G. Otherwise they are constants to it, and its
            gradient only flows *through* the routing weights to x. None: as the arm says that trains the layer.
        gate: from logits to weights, see `tiny_onn.gates`. None: as the arm says that trains the layer; else `mas`.
        density: limits the gate to a token's k = round(density O) best experts, at least one; under a regulation
            without limit it is the density aimed at. None: no limit.
        regulation: see `tiny_onn.regulation`; of a layer with a density. None: as the arm says that trains the layer.
        gate_parameter: G. "off": none, the logits are gain x P^T / sqrt(I). "zero": as ADR-0004 has it, [O, I] from
            zero, where mas(x G^T) is flat: it never moves. "uniform": [O, I], uniform in [0, 1). "scalar": [O], uniform
            in [0, 1), mas(G) in the place of mas(x G^T) (from zero, as its authors start it, it would not move either).

    Attributes:
        single_pass: None, or what computes a call's masked output in the stead of `forward` where gradients are wanted;
            see `tiny_onn.fused`.
        reductions: None, or the count of sums over workers of the model that the layer is in; see
            `tiny_onn.distributed`.

    Raises:
        ValueError: `residual` with I != O, or a density that is not above 0 and at most 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        residual: bool | None = None,
        gain: float = 1.0,
        router_learns_from_task: bool | None = None,
        gate: Gate | None = None,
        density: float | None = None,
        regulation: Regulation | None = None,
        gate_parameter: GateParameter = "off",
    ) -> None:
        super().__init__()
        self.residual = in_features == out_features if residual is None else residual
        if self.residual and in_features != out_features:
            raise ValueError(f"residual needs in_features == out_features, found {in_features} and {out_features}")
        if density is not None and not 0 < density <= 1:
            raise ValueError(f"density: found {density}; expected a number above 0 and at most 1, or None")
        self.in_features, self.out_features = in_features, out_features
        self.gain = gain
        self.router_learns_from_task = router_learns_from_task
        self.task_reaches_router = bool(router_learns_from_task)
        self.gate, self.density, self.gate_parameter = gate, density, gate_parameter
        self.regulation: Regulation | None = None
        self.mu_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.mu_bias = nn.Parameter(torch.zeros(out_features))
        self.proto_weight = nn.Parameter(torch.empty(out_features, in_features))
        shape = (out_features,) if gate_parameter == "scalar" else (out_features, in_features)
        self.gate_param = None if gate_parameter == "off" else nn.Parameter(torch.zeros(shape))
        self.call_point = CallPoint()
        self.single_pass: Callable[[SparseProtoLinear, Tensor], Tensor] | None = None
        self.reductions: Reductions | None = None
        nn.init.kaiming_uniform_(self.mu_weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.proto_weight, a=math.sqrt(5))
        if self.gate_param is not None and gate_parameter != "zero":
            nn.init.uniform_(self.gate_param)
        if regulation is not None:
            self.regulate(regulation)

    @property
    def rule(self) -> Rule:
        """The constants of its routing."""
        limited = self.regulation is None or self.regulation.with_limit
        k = experts_of(self.density, self.out_features) if limited else None
        return Rule(self.gain, self.in_features, self.gate or MAS, k)

    def regulate(self, regulation: Regulation) -> None:
        """Has the layer's density regulated from here on; a layer without a density stays as it is."""
        if self.density is None or self.regulation is regulation:
            return
        self.regulation = regulation
        like = self.mu_weight
        for name, value in first_state(regulation, self.out_features, self.density)._asdict().items():
            self.register_buffer(f"regulation_{name}", value.to(like.device, like.dtype))

    @property
    def regulation_state(self) -> RegulationState | None:
        """What its regulation remembers; None without one."""
        if self.regulation is None:
            return None
        return RegulationState(*(getattr(self, f"regulation_{name}") for name in RegulationState._fields))

    def set_regulation_state(self, state: RegulationState) -> None:
        """For the next step."""
        for name, value in state._asdict().items():
            getattr(self, f"regulation_{name}").copy_(value)

    @property
    def threshold(self) -> Tensor | None:
        """What its regulation subtracts from each expert's logit, [O]; None if it does not."""
        shifts = self.regulation is not None and self.regulation.shifts
        return self.regulation_threshold if shifts else None  # type: ignore[return-value]

    def computation_output(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """y."""
        affine = nn.functional.linear(x, self.mu_weight, self.mu_bias)
        return x + affine if self.residual else affine

    def routing(
        self, x: Float[Tensor, "*b i"], computation_output: Float[Tensor, "*b o"] | None = None, *, learn: bool
    ) -> Routing:
        """Which experts speak for each token; with `learn` False, P and G are constants.

        `computation_output` is y, where it is known already.
        """
        rule = self.rule
        if computation_output is None:
            computation_output = self.computation_output(x)
        if not rule.gate.needs_router(rule.k):
            return Routing(computation_output.detach(), None, rule).choose(computation_output)
        match = nn.functional.linear(x, self.proto_weight if learn else self.proto_weight.detach())
        gate = None
        if self.gate_param is not None:
            gates = self.gate_param if learn else self.gate_param.detach()
            gate = gates if self.gate_parameter == "scalar" else nn.functional.linear(x, gates)
        return Routing(match, gate, rule, self.threshold).choose(computation_output)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The masked output."""
        if self.single_pass is not None and torch.is_grad_enabled():
            return self.single_pass(self, x)
        computation_output = self.computation_output(x)
        routing = self.routing(x, computation_output, learn=self.task_reaches_router)
        masked_output = computation_output * routing.weights()
        if routing.rule.gate.straight_through:
            masked_output = computation_output + (masked_output - computation_output).detach()
        return self.call_point(SparseProtoCall(x, computation_output, masked_output, routing))

    def __getstate__(self) -> dict[str, Any]:
        """Without `single_pass` and `reductions`: a copy is in no engine, and in no DDP."""
        return {**self.__dict__, "single_pass": None, "reductions": None}

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        density = "" if self.density is None else f", density={self.density}"
        return f"in_features={self.in_features}, out_features={self.out_features}, residual={self.residual}{density}"


def sparse_layers(model: nn.Module) -> dict[str, SparseProtoLinear]:
    """Every SparseProtoLinear of a model by its qualified name, a shared one once, in the order of named_modules()."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseProtoLinear)}


def router_parameters(model: nn.Module) -> list[nn.Parameter]:
    """P, and G where there is one, of every SparseProtoLinear: the stream that the meta-loss updates."""
    both = (p for layer in sparse_layers(model).values() for p in (layer.proto_weight, layer.gate_param))
    return [p for p in both if p is not None]


def computation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every other parameter: the stream that the task loss updates."""
    router = {id(p) for p in router_parameters(model)}
    return [p for p in model.parameters() if id(p) not in router]
