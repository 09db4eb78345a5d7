"""Gates: from a token's routing logits to the weights of its experts, forwards and backwards.

A gate may be limited to a token's k best experts. Experts that tie with the k-th are all kept, so the result does not
depend on the order of the experts; with float logits of real data ties do not occur.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tiny_onn.mas import mas, mas_backward

Score = Literal["logits", "magnitude"]
_FEW = 6  # with more experts a token, `topk` is as fast
_MANY = 2**13  # scores; with fewer, too


@dataclass(frozen=True)
class Gate:
    """One way from routing logits to routing weights.

    Attributes:
        weights: `weights(logits [*, O], chosen [*, O] or None) -> [*, O]`, non-negative, and 0 where `chosen` is 0.
            `chosen` is 1 for the k experts that a density leaves a token; None leaves all.
        backward: `backward(dL/dw, logits, weights, chosen) -> dL/dl`, the derivative of `weights`; None where a gate
            has none, and the task loss cannot train a router through it.
        reads_logits: False where `weights` depends on `chosen` alone; its `logits` are then any tensor of that shape.
        score: what the k best experts are chosen by: the logits, or the size of the computation output, |y|.
        straight_through: dL/dy is dL/do for all experts, as if all were open (Bengio et al. 2013, arXiv 1308.3432).
    """

    weights: Callable[[Tensor, Tensor | None], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None = None
    reads_logits: bool = True
    score: Score = "logits"
    straight_through: bool = False

    def needs_router(self, k: int | None) -> bool:
        """Whether P matters to the weights: otherwise its product is not computed."""
        return self.reads_logits or (k is not None and self.score == "logits")


def experts_of(density: float | None, experts: int) -> int | None:
    """k = round(density x experts), at least 1; None without a density, and where k is all of them."""
    if density is None:
        return None
    k = max(1, round(density * experts))
    return None if k >= experts else k


@torch.no_grad()
def choose(scores: Float[Tensor, "*b o"], k: int) -> Bool[Tensor, "*b o"]:
    """True for each token's k largest scores, and for all that tie with the k-th."""
    if k <= _FEW and scores.numel() >= _MANY and scores.device.type == "cpu" and not torch.compiler.is_compiling():
        chosen = _choose_few(scores, k)
        if chosen is not None:
            return chosen
    return scores >= scores.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)


def _choose_few(scores: Float[Tensor, "*b o"], k: int) -> Bool[Tensor, "*b o"] | None:
    """`choose` by k passes for the largest score, which takes a CPU a fraction of the time of `topk`.

    None where the passes do not find it: where scores tie or are not finite, or under torch.func.vmap.
    """
    rest, beyond_all = scores, torch.finfo(scores.dtype).max
    largest = rest.amax(dim=-1, keepdim=True)
    try:
        for _ in range(k - 1):
            taken = torch.ge(rest, largest, out=torch.empty_like(rest))  # numbers: faster than a mask, as is sub
            rest = torch.sub(rest, taken, alpha=beyond_all)
            largest = rest.amax(dim=-1, keepdim=True)
        taken = torch.ge(scores, largest, out=torch.empty_like(rest))
        # k scores that are no smaller than a number, the others being smaller, are the k largest.
        return taken.bool() if bool((taken.sum(dim=-1) == k).all()) else None
    except RuntimeError:
        return None


def _only(values: Tensor, chosen: Tensor | None) -> Tensor:
    return values if chosen is None else values * chosen


def _mas(logits: Tensor, chosen: Tensor | None) -> Tensor:
    return _only(mas(logits), chosen)


def _mas_backward(gradient: Tensor, logits: Tensor, weights: Tensor, chosen: Tensor | None) -> Tensor:
    return mas_backward(_only(gradient, chosen), logits, weights)


def _relu(logits: Tensor, chosen: Tensor | None) -> Tensor:
    return _only(torch.relu(logits), chosen)


def _relu_backward(gradient: Tensor, logits: Tensor, weights: Tensor, chosen: Tensor | None) -> Tensor:
    return torch.ops.aten.threshold_backward(_only(gradient, chosen), logits, 0)


def _hard(logits: Tensor, chosen: Tensor | None) -> Tensor:
    return _only((logits > 0).to(logits.dtype), chosen)


def _open(logits: Tensor, chosen: Tensor | None) -> Tensor:
    return torch.ones_like(logits) if chosen is None else chosen.to(logits.dtype)


def _softmax(logits: Tensor, chosen: Tensor | None) -> Tensor:
    if chosen is None:
        return torch.softmax(logits, dim=-1) * logits.shape[-1]
    kept = chosen.sum(dim=-1, keepdim=True)
    return torch.softmax(logits.masked_fill(chosen == 0, -torch.inf), dim=-1) * kept


def _softmax_backward(gradient: Tensor, logits: Tensor, weights: Tensor, chosen: Tensor | None) -> Tensor:
    kept = logits.shape[-1] if chosen is None else chosen.sum(dim=-1, keepdim=True)
    return weights * (gradient - (gradient * weights).sum(dim=-1, keepdim=True) / kept)


MAS = Gate(_mas, _mas_backward)
"""w = mas(l): the ADR's. The best expert of a token has weight 1, those with a logit of 0 or less have none."""
RELU = Gate(_relu, _relu_backward)
"""w = relu(l): ReMoE (Wang et al. 2024, arXiv 2412.14711)."""
HARD = Gate(_hard)
"""w = 1 where l > 0, else 0. It has no derivative: Goodness can train a router through it, the task loss cannot."""
OPEN = Gate(_open, reads_logits=False)
"""w = 1 for all experts (or the chosen): without a density the layer is an ordinary linear one."""
SOFTMAX = Gate(_softmax, _softmax_backward)
"""w = k softmax(l) over the k chosen: Switch (Fedus et al. 2021, arXiv 2101.03961) and Mixtral. The factor k keeps the
mean weight at 1, for here an expert is one output row and not a whole network whose outputs are added up."""
MAGNITUDE = Gate(_open, reads_logits=False, score="magnitude")
"""w = 1 for the k experts with the largest |y|, no router: Q-Sparse (Wang et al. 2024, arXiv 2407.10969)."""
MAGNITUDE_STE = Gate(_open, reads_logits=False, score="magnitude", straight_through=True)
"""`MAGNITUDE` with Q-Sparse's straight-through estimator: closed experts get the gradient as if they were open."""

GATES: dict[str, Gate] = {
    "mas": MAS,
    "relu": RELU,
    "hard": HARD,
    "open": OPEN,
    "softmax": SOFTMAX,
    "magnitude": MAGNITUDE,
    "magnitude_ste": MAGNITUDE_STE,
}


def imported(name: str, what: str, kinds: tuple[type, ...]) -> object:
    """The value that "package.module:attribute" names.

    Raises:
        ValueError: it cannot be imported, or is none of `kinds`; `what` says what it was named for.
    """
    module, _, attribute = name.partition(":")
    names = [kind.__name__ for kind in kinds]
    expected = f"one of {', '.join(names)}" if len(names) > 1 else f"a {names[0]}"
    try:
        value: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {name!r} cannot be imported: {error}") from error
    if not isinstance(value, kinds):
        raise ValueError(f"{what} {name!r} is a {type(value).__name__}; expected {expected}")
    return value
