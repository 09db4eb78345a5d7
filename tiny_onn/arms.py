"""The arms by name, and what each is: known without torch, whose import takes seconds. The arms: `tiny_onn.arm`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Granularity = Literal["token", "layer", "none"]


@dataclass(frozen=True)
class ArmFacts:
    """What an arm is.

    Attributes:
        granularity: "token": every token has a Goodness of its own; "layer": all tokens share one; "none": no Goodness.
        summary: in a few words.
        baseline: whether it is one of the field's, which a Goodness arm has to beat at equal density.
    """

    granularity: Granularity
    summary: str
    baseline: bool = False


ARM_FACTS: Mapping[str, ArmFacts] = MappingProxyType(
    {
        "per_token": ArmFacts("token", "ADR-0004: cost is the norm of the token's own weight gradient"),
        "aggregated": ArmFacts("layer", "cost is the norm of W.grad, all tokens summed first"),
        "metric_only": ArmFacts("layer", "cost is the mean of |W.grad|: another metric on the same sum"),
        "task_only": ArmFacts("none", "no Goodness; the task loss trains the router", baseline=True),
        "relative": ArmFacts("token", "`per_token` over the norm of the expert's weight row"),
        "fisher": ArmFacts("token", "the token's gradient in the metric of Adam's second moment"),
        "metric_max": ArmFacts("layer", "cost is the largest entry of |W.grad|"),
        "per_token_einsum": ArmFacts("token", "`per_token` by the whole gradient tensor; an oracle"),
        "per_token_vmap": ArmFacts("token", "`per_token` by torch.func.vmap; an oracle"),
        "per_token_function": ArmFacts("token", "`per_token` by a custom autograd.Function; an oracle"),
        "signed": ArmFacts("token", "signal relu(-o dL/do): keeps the sign that |o| |g| discards"),
        "opening": ArmFacts("token", "signal relu(-y dL/do), also of closed experts; hard gate, weighted tokens"),
        "benefit": ArmFacts(
            "token", "signal -y dL/do with its sign, straight through to the logits; set model.density"
        ),
        "balanced": ArmFacts("token", "`benefit`, with thresholds that keep experts equally busy; set model.density"),
        "subtractive": ArmFacts("token", "signal mas(|dL/do|) (mas(|o|) - mas(C)); entropy of l + Goodness"),
        "top_k": ArmFacts("none", "the task loss trains the router; set model.density", baseline=True),
        "remoe": ArmFacts("none", "relu gate, adaptive L1 towards model.density (ReMoE)", baseline=True),
        "switch": ArmFacts("none", "softmax gate over the k best, load-balancing loss (Switch)", baseline=True),
        "magnitude": ArmFacts("none", "the k largest |y|, no router", baseline=True),
        "magnitude_ste": ArmFacts("none", "the k largest |y|, straight-through gradient (Q-Sparse)", baseline=True),
        "dense": ArmFacts("none", "every expert open, no router", baseline=True),
    }
)
ALIASES: Mapping[str, str] = MappingProxyType({"none": "task_only"})  # names of before

GRANULARITY: Mapping[str, Granularity] = MappingProxyType({name: arm.granularity for name, arm in ARM_FACTS.items()})
BASELINES: tuple[str, ...] = tuple(name for name, arm in ARM_FACTS.items() if arm.baseline)


def canonical(name: str) -> str:
    """The arm's name of today."""
    return ALIASES.get(name, name)
