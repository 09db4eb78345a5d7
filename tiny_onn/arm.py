"""An arm: what teaches the router, through which gate, at which density. A value made of named parts.

    gate        routing logits -> routing weights                       tiny_onn.gates
    teacher     what P and G are trained by: the task loss, Goodness, or a weighted sum of both
                    signal      what an expert was worth to a token     tiny_onn.signals
                    cost        what learning cost                      tiny_onn.learning_cost
                    objective   how routing is compared with that       tiny_onn.objectives
    regulation  keeps a gate without a limit at a target density        tiny_onn.regulation

The arms that come with the package are in `ARMS`; their names, known without torch, in `tiny_onn.arms`. A part of one's
own is "package.module:attribute", wherever a part is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from tiny_onn.arms import canonical
from tiny_onn.gates import GATES, HARD, MAGNITUDE, MAGNITUDE_STE, MAS, OPEN, RELU, SOFTMAX, Gate, imported
from tiny_onn.layers import SparseProtoLinear, sparse_layers
from tiny_onn.learning_cost import COSTS, LayerCost, LearningCost, TokenCost
from tiny_onn.objectives import CROSS_ENTROPY, ENTROPY_OF_SUM, JSD, OBJECTIVES, STRAIGHT_THROUGH, Objective
from tiny_onn.regulation import ADAPTIVE_L1, BALANCED, LOAD_BALANCE, REGULATIONS, Regulation
from tiny_onn.signals import BENEFIT, GOODNESS, OPENING, SIGNALS, SIGNED, SUBTRACTIVE, Signal

TokenWeight = Literal["uniform", "signal"]


@dataclass(frozen=True)
class Goodness:
    """Goodness as a teacher.

    Attributes:
        cost: of granularity "layer", all tokens share one Goodness, which is the ADR's: `signal` is then GOODNESS.
        sharpness: exponent on the target scores mas(Goodness): above 1 sharper and sparser, below 1 flatter and denser.
        token_weight: "uniform": every valid token counts alike; "signal": as much as its largest signal, so that tokens
            on which more depends teach more. The weights' global sum takes the place of the number of tokens.
    """

    cost: LearningCost
    signal: Signal = GOODNESS
    objective: Objective = JSD
    sharpness: float = 1.0
    token_weight: TokenWeight = "uniform"


@dataclass(frozen=True)
class Teacher:
    """What P and G are trained by: task x the task loss + weight x the meta-loss of Goodness. Neither: frozen."""

    task: float = 0.0
    goodness: Goodness | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison. See the module."""

    teacher: Teacher
    gate: Gate = field(default=MAS)
    regulation: Regulation | None = None

    @property
    def cost(self) -> LearningCost | None:
        """The learning cost; None without Goodness."""
        goodness = self.teacher.goodness
        return None if goodness is None else goodness.cost

    @property
    def measures_layers(self) -> bool:
        """Whether Goodness is known only after the backward pass: such an arm needs the hooks' engine."""
        return isinstance(self.cost, LayerCost)

    @property
    def reads_masked(self) -> bool:
        """Whether the signal needs dL/d(masked_output)."""
        goodness = self.teacher.goodness
        return goodness is not None and goodness.signal.reads_masked

    def problem(self, density: float | None) -> str | None:
        """Why the parts do not go together at this density (None: without limit); None where they do."""
        regulation = self.regulation if density is not None else None
        limited = density is not None and (regulation is None or regulation.with_limit)
        needs_router = self.gate.reads_logits or (limited and self.gate.score == "logits")
        if self.teacher.task and needs_router and self.gate.backward is None:
            return "trains its router by the task loss, but its gate has no derivative; teach it by Goodness"
        if self.teacher.goodness and not needs_router:
            if self.gate.score == "logits":  # which a limit reads
                return "has a gate that reads the router only where a density limits it; set model.density"
            return "teaches a router that its gate does not read; use a gate of the routing logits"
        if self.teacher.task < 0 or self.teacher.weight < 0:
            return "has a teacher of negative weight; expected weights of 0 or more"
        if self.measures_layers and self.reads_masked:
            return "has a learning cost of a whole layer, which only the signal 'goodness' goes with"
        goodness = self.teacher.goodness
        if goodness and not 0 < goodness.sharpness < 100:
            return f"has sharpness {goodness.sharpness}; expected a number above 0 and below 100"
        if goodness and goodness.objective.signed and (goodness.sharpness != 1 or (regulation and regulation.sharpens)):
            return "sharpens Goodness for an objective that reads it as it is; leave sharpness 1"
        if goodness and goodness.token_weight == "signal" and self.measures_layers:
            return "weights tokens by a signal that all tokens share; use token_weight: uniform"
        if regulation is None:
            return None
        if regulation.penalty is not None and self.gate.backward is None:
            return "regulates by a penalty on routing weights, but its gate has no derivative"
        if regulation.penalty is not None and goodness and goodness.token_weight == "signal":
            return "has a penalty on all tokens and a teacher that weights them; use token_weight: uniform"
        if regulation.sharpens and not goodness:
            return "regulates the sharpness of Goodness's target, but has no Goodness"
        if not needs_router:
            return "regulates a router that its gate does not read"
        return None


def _of_cost(name: str) -> Arm:
    return Arm(Teacher(goodness=Goodness(COSTS[name])))


TASK_ONLY = Arm(Teacher(task=1.0))

_BENEFIT = Teacher(goodness=Goodness(COSTS["per_token"], BENEFIT, STRAIGHT_THROUGH))

ARMS: Mapping[str, Arm] = {
    **{name: _of_cost(name) for name in COSTS},
    "signed": Arm(Teacher(goodness=Goodness(COSTS["per_token"], SIGNED))),
    "opening": Arm(Teacher(goodness=Goodness(COSTS["per_token"], OPENING, CROSS_ENTROPY, token_weight="signal")), HARD),
    "benefit": Arm(_BENEFIT, OPEN),
    "balanced": Arm(_BENEFIT, OPEN, BALANCED),
    "subtractive": Arm(Teacher(goodness=Goodness(COSTS["per_token"], SUBTRACTIVE, ENTROPY_OF_SUM))),
    "task_only": TASK_ONLY,
    "top_k": TASK_ONLY,
    "remoe": Arm(Teacher(task=1.0), RELU, ADAPTIVE_L1),
    "switch": Arm(Teacher(task=1.0), SOFTMAX, LOAD_BALANCE),
    "magnitude": Arm(Teacher(), MAGNITUDE),
    "magnitude_ste": Arm(Teacher(), MAGNITUDE_STE),
    "dense": Arm(Teacher(), OPEN),
}
"""The arms by name; `tiny_onn.arms.ARM_FACTS` says of each what it is."""


def as_arm(value: Arm | LearningCost | None) -> Arm:
    """An arm as it is; of a learning cost, the ADR's arm with that cost; of None, `task_only`."""
    if isinstance(value, Arm):
        return value
    return TASK_ONLY if value is None else Arm(Teacher(goodness=Goodness(value)))


def arm(name: str, parts: Mapping[str, Any] | None = None) -> Arm:
    """The arm of a name, with parts replaced.

    Args:
        name: one of `ARMS`, or "package.module:attribute" for an Arm, TokenCost or LayerCost of one's own.
        parts: any of gate, signal, cost, objective, regulation (names, or "package.module:attribute"; regulation "off"
            for none), sharpness, token_weight, task_weight, goodness_weight; None leaves the arm's own.

    Raises:
        ValueError: there is no such arm or part, it cannot be imported, breaks its contract, or the arm has no Goodness
            of which a part could be replaced.
    """
    named = canonical(name)
    if named in ARMS:
        base = ARMS[named]
    elif ":" in name:
        base = as_arm(imported(name, "arm", (Arm, TokenCost, LayerCost)))  # type: ignore[arg-type]
        _check_parts(name, base)
    else:
        raise ValueError(f"unknown arm {name!r}; there are {', '.join(ARMS)}, or package.module:attribute")
    return _with_parts(base, {key: value for key, value in (parts or {}).items() if value is not None})


def _with_parts(base: Arm, parts: dict[str, Any]) -> Arm:
    of_goodness: dict[str, Any] = {}
    for key, table, kinds in (
        ("signal", SIGNALS, (Signal,)),
        ("objective", OBJECTIVES, (Objective,)),
        ("cost", COSTS, (TokenCost, LayerCost)),
    ):
        if key in parts:
            of_goodness[key] = _part(parts[key], key, table, kinds)
    of_goodness |= {key: parts[key] for key in ("sharpness", "token_weight") if key in parts}
    teacher = base.teacher
    if of_goodness:
        if teacher.goodness is None:
            raise ValueError(f"{', '.join(of_goodness)}: part of Goodness, which this arm's router is not taught by")
        teacher = replace(teacher, goodness=replace(teacher.goodness, **of_goodness))
    if "task_weight" in parts:
        teacher = replace(teacher, task=float(parts["task_weight"]))
    if "goodness_weight" in parts:
        teacher = replace(teacher, weight=float(parts["goodness_weight"]))
    if "regulation" in parts:
        off = parts["regulation"] == "off"
        named = None if off else _part(parts["regulation"], "regulation", REGULATIONS, (Regulation,))
        base = replace(base, regulation=named)
    if "gate" in parts:
        base = replace(base, gate=_part(parts["gate"], "gate", GATES, (Gate,)))
    return replace(base, teacher=teacher)


def _part(name: str, what: str, known: Mapping[str, Any], kinds: tuple[type, ...]) -> Any:
    if name in known:
        return known[name]
    if ":" not in name:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(known)}, or package.module:attribute")
    part = imported(name, what, kinds)
    from tiny_onn.arm_contract import part_problem  # which knows the classes above

    if problem := part_problem(part):
        raise ValueError(f"{what} {name!r} {problem}")
    return part


def _check_parts(name: str, base: Arm) -> None:
    from tiny_onn.arm_contract import part_problem

    goodness = base.teacher.goodness
    own = [base.gate, base.regulation, *((goodness.cost, goodness.signal, goodness.objective) if goodness else ())]
    for each in own:
        if each is not None and (problem := part_problem(each)):
            raise ValueError(f"arm {name!r} {problem}")


def configure(model: nn.Module, arm: Arm) -> None:
    """Has every SparseProtoLinear of a model route and learn as the arm says, where the layer itself says nothing.

    Gate, regulation and whether the task loss reaches P and G are set. P and G are frozen where nothing trains them: no
    teacher, or a gate that does not read them. Doing it again changes nothing.

    Raises:
        ValueError: a layer has another gate, or the arm's parts do not go together at its density; names it.
    """
    for name, layer in sparse_layers(model).items():
        if problem := arm.problem(layer.density):
            raise ValueError(f"{name!r}: the arm {problem}")
        if layer.gate is not None and layer.gate is not arm.gate:
            raise ValueError(
                f"{name!r} has another gate than the arm; leave the layer's gate None, or give both the same"
            )
        layer.gate = arm.gate
        if arm.regulation is not None:
            layer.regulate(arm.regulation)
        given = layer.router_learns_from_task
        layer.task_reaches_router = arm.teacher.task != 0 if given is None else given
        taught = arm.teacher.task != 0 or arm.teacher.goodness is not None or penalises(layer)
        if not taught or not arm.gate.needs_router(layer.rule.k):
            for parameter in (layer.proto_weight, layer.gate_param):
                if parameter is not None:
                    parameter.requires_grad_(False)


def penalises(layer: SparseProtoLinear) -> bool:
    """Whether its regulation adds a penalty to what the router minimises."""
    return layer.regulation is not None and layer.regulation.penalty is not None
