"""Regulation: keeps the routing of a layer at a target density, or its experts equally busy.

Each layer keeps a `RegulationState` of its own and changes it after every step, from what the global batch did in that
step. What a step computes depends on the steps before it alone, so the backward pass stays single and the result does
not depend on how tokens are sharded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.mas import EPS
from tiny_onn.routing import Routing

_MEMORY = 0.9  # of the running mean of the logits' size


class RegulationState(NamedTuple):
    """What a layer remembers between steps; buffers of the layer, saved with it.

    Attributes:
        threshold: [o], subtracted from the logits.
        load: [o], the fraction of the last global batch's valid tokens for which each expert was active.
        pressure: [], a penalty's weight, or the exponent on Goodness's target.
        scale: [], running mean of |logit|, the unit of the thresholds' steps; 0 before the first step.
    """

    threshold: Float[Tensor, " o"]
    load: Float[Tensor, " o"]
    pressure: Float[Tensor, ""]
    scale: Float[Tensor, ""]


class Seen(NamedTuple):
    """Of a layer's valid tokens in one step, over all workers: sums."""

    tokens: Float[Tensor, ""]
    scale: Float[Tensor, ""]  # of the tokens' mean |logit|
    active: Float[Tensor, " o"]  # tokens for which each expert is active


@dataclass(frozen=True)
class Regulation:
    """One way to regulate.

    Attributes:
        update: `update(state, load [o], target) -> state`, after each step; `load` is the step's own, and `state.scale`
            is brought up to date already. `target` is `model.density`.
        penalty: `penalty(routing, state, target) -> (value [n], d value/d logits [n, o])`, added to what the router
            minimises: a sum over valid tokens, divided by their global number. Its gradient goes to P and G only.
        shifts: whether `threshold` is used.
        sharpens: whether `pressure` is the exponent on Goodness's target.
        start: the first `pressure`.
        with_limit: whether `model.density` limits the gate as well, to a token's k best experts.
    """

    update: Callable[[RegulationState, Tensor, float], RegulationState]
    penalty: Callable[[Routing, RegulationState, float], tuple[Tensor, Tensor]] | None = None
    shifts: bool = False
    sharpens: bool = False
    start: float = 1.0
    with_limit: bool = False


def first_state(regulation: Regulation, experts: int, target: float) -> RegulationState:
    """Before the first step: no threshold, every expert taken to be as busy as it should be."""
    return RegulationState(
        torch.zeros(experts), torch.full((experts,), target), torch.tensor(regulation.start), torch.zeros(())
    )


@torch.no_grad()
def after_step(regulation: Regulation, state: RegulationState, seen: Seen, target: float) -> RegulationState:
    """The state for the next step. A step without a valid token changes nothing."""
    tokens = seen.tokens.clamp(min=1)
    scale = seen.scale / tokens
    scale = torch.where(state.scale > 0, _MEMORY * state.scale + (1 - _MEMORY) * scale, scale)
    load = (seen.active / tokens).to(state.load.dtype)
    updated = regulation.update(state._replace(scale=scale.to(state.scale.dtype)), load, target)._replace(load=load)
    some = seen.tokens > 0
    return RegulationState(*(torch.where(some, new, old) for new, old in zip(updated, state, strict=True)))


# --- adaptive L1 (ReMoE) ---

_L1_FACTOR = 1.2
_L1_START = 1e-6
_L1_DAMPING = 10.0
_L1_RANGE = (1e-10, 1e3)


def _adapt_l1(state: RegulationState, load: Tensor, target: float) -> RegulationState:
    density = load.mean() + EPS
    error = torch.log2(density / target).clamp(-1, 1)
    trend = (_L1_DAMPING * torch.log2(density / (state.load.mean() + EPS))).clamp(-2, 2)
    return state._replace(pressure=(state.pressure * _L1_FACTOR ** (error + trend)).clamp(*_L1_RANGE))


def _l1_penalty(routing: Routing, state: RegulationState, target: float) -> tuple[Tensor, Tensor]:
    weights = routing.weights()
    balance = (state.pressure * state.load / target).to(weights.dtype).expand_as(weights)
    gradient = routing.logits_gradient(balance, weights)
    assert gradient is not None  # of a gate with a derivative; see `arm.Arm`
    return (weights * balance).sum(dim=-1), gradient


ADAPTIVE_L1 = Regulation(_adapt_l1, _l1_penalty, start=_L1_START)
"""lambda sum_e f_e w_e a token, for the relu gate; f_e is expert e's load over the target and lambda is multiplied
by 1.2^u after every step. ReMoE (Wang et al. 2024, arXiv 2412.14711, equations 6 to 9), but for three things. f is that
of the step before. The penalty does not reach the layers below. Each layer has a lambda of its own that starts at 1e-6,
not 1e-8, and u is not the sign of density - target but log2(density / target) within [-1, 1] plus ten times the change
of log2(density) within [-2, 2]: over hundreds of steps the sign alone swings from half the target to twice it."""


# --- load balancing (Switch) ---

_BALANCE_WEIGHT = 0.01


def _keep(state: RegulationState, load: Tensor, target: float) -> RegulationState:
    return state


def _balance_penalty(routing: Routing, state: RegulationState, target: float) -> tuple[Tensor, Tensor]:
    logits = routing.logits()
    share = (state.load / (state.load.sum() + EPS)).to(logits.dtype)
    p = torch.softmax(logits, dim=-1)
    factor = _BALANCE_WEIGHT * logits.shape[-1]
    value = (p * share).sum(dim=-1, keepdim=True)
    return factor * value.squeeze(-1), factor * p * (share - value)


LOAD_BALANCE = Regulation(_keep, _balance_penalty, with_limit=True)
"""0.01 O sum_e f_e P_e, P the mean of softmax(l) over tokens and f each expert's part of all choices: Switch (Fedus et
al. 2021, arXiv 2101.03961, equation 4); f is that of the step before."""


# --- thresholds ---

_BIAS_STEP = 0.05
_QUANTILE_STEP = 0.5


def _bias_update(state: RegulationState, load: Tensor, target: float) -> RegulationState:
    return state._replace(threshold=state.threshold + _BIAS_STEP * state.scale * torch.sign(load - target))


def _quantile_update(state: RegulationState, load: Tensor, target: float) -> RegulationState:
    return state._replace(threshold=state.threshold + _QUANTILE_STEP * state.scale * (load - target))


BIAS = Regulation(_bias_update, shifts=True)
"""Each expert's threshold rises by a fixed step while it is busier than the target, and falls while it is less: the
loss-free bias (Wang et al. 2024, arXiv 2408.15664) against an absolute target. The step is a twentieth of the mean
|logit|. The threshold shifts the logit that the gate sees; the paper's bias only chooses."""
QUANTILE = Regulation(_quantile_update, shifts=True)
"""Each expert's threshold follows the (1 - density) quantile of its logits, by stochastic approximation (Robbins and
Monro 1951): t += step (load - density), the step half of the mean |logit|. It is causal: only the batches before have a
say in how a batch is routed."""
BALANCED = Regulation(_quantile_update, shifts=True, with_limit=True)
"""`QUANTILE`, and of what the thresholds leave of the logits a token's k best: as many experts for every token, and
every expert as busy. Through the gate `open` the thresholds choose and weigh nothing, as the loss-free bias does."""


# --- sharpness of Goodness's target ---

_SHARPNESS_STEP = 0.02
_SHARPNESS_RANGE = (0.05, 20.0)


def _sharpness_update(state: RegulationState, load: Tensor, target: float) -> RegulationState:
    error = torch.log((load.mean() + EPS) / target).clamp(-1, 1)
    return state._replace(pressure=(state.pressure * torch.exp(_SHARPNESS_STEP * error)).clamp(*_SHARPNESS_RANGE))


SHARPNESS = Regulation(_sharpness_update, sharpens=True)
"""The exponent on Goodness's target rises while the layer is denser than the target, and falls while it is sparser."""

REGULATIONS: dict[str, Regulation] = {
    "adaptive_l1": ADAPTIVE_L1,
    "load_balance": LOAD_BALANCE,
    "bias": BIAS,
    "quantile": QUANTILE,
    "balanced": BALANCED,
    "sharpness": SHARPNESS,
}
