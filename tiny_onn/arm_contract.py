"""Does a part of one's own keep its contract? Tried on a few numbers, before anything is trained with it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tiny_onn.cost_contract import cost_problem
from tiny_onn.gates import Gate
from tiny_onn.learning_cost import LayerCost, TokenCost
from tiny_onn.objectives import Objective
from tiny_onn.regulation import Regulation, RegulationState, Seen, after_step, first_state
from tiny_onn.routing import Routing, Rule
from tiny_onn.signals import Moment, Signal

_TOKENS, _EXPERTS, _INPUTS = 5, 3, 7  # all different, so that no axis passes for another
_TARGET = 0.3


def part_problem(part: object) -> str | None:
    """What is wrong with a gate, signal, objective, regulation or learning cost, as a sentence without its subject.

    Each is called as the engines would call it, in float64; a derivative in closed form is compared with autograd's.
    None where nothing is wrong.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        numbers = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=numbers)

        if isinstance(part, TokenCost | LayerCost):
            return cost_problem(part)
        if isinstance(part, Gate):
            return _gate_problem(part, random)
        if isinstance(part, Signal):
            return _signal_problem(part, random)
        if isinstance(part, Objective):
            return _objective_problem(part, random)
        if isinstance(part, Regulation):
            return _regulation_problem(part, random)
    return f"is a {type(part).__name__}; expected a part of an arm"


def _gate_problem(gate: Gate, random: Callable[..., Tensor]) -> str | None:
    logits = random(_TOKENS, _EXPERTS)
    for chosen in (None, (random(_TOKENS, _EXPERTS) > 0).double()):
        free = logits.clone().requires_grad_(gate.backward is not None and gate.reads_logits)
        called = f"for logits {list(logits.shape)} and chosen {'None' if chosen is None else list(chosen.shape)}"
        weights, problem = _called(partial(gate.weights, free, chosen), called, list(logits.shape))
        if problem:
            return problem
        assert weights is not None
        if (weights < 0).any():
            return f"returned negative weights (lowest {float(weights.min()):.3g}) {called}; expected 0 or above"
        if chosen is not None and weights.detach()[chosen == 0].any():
            return f"gave a weight to an expert that is not among the chosen {called}; expected 0 there"
        if gate.backward is None or not gate.reads_logits:
            continue
        pull = random(_TOKENS, _EXPERTS)
        own, problem = _called(
            partial(gate.backward, pull, free.detach(), weights.detach(), chosen),
            f"{called} (backward)",
            list(logits.shape),
        )
        if problem:
            return problem
        if not weights.requires_grad:
            return "has a `backward`, but its weights do not depend on the logits by differentiable operations"
        (truth,) = torch.autograd.grad((weights * pull).sum(), free)
        if problem := _differs(own, truth, called):
            return problem
    return None


def _signal_problem(signal: Signal, random: Callable[..., Tensor]) -> str | None:
    for tokens in (_TOKENS, 0):
        y, g = random(tokens, _EXPERTS), random(tokens, _EXPERTS)
        weights = torch.relu(random(tokens, _EXPERTS))
        masked = (y, g) if signal.reads_masked else ()
        moment = Moment(random(tokens, _INPUTS), y * weights, g * weights, *masked)
        called = f"for {tokens} tokens and {_EXPERTS} experts"
        cost = y.abs()
        _, problem = _called(partial(signal.measure, moment, cost), called, [tokens, _EXPERTS])
        if problem:
            hint = "" if signal.reads_masked else "; computation_output and masked_gradient need reads_masked=True"
            return problem + (hint if "NoneType" in problem else "")
    return None


def _objective_problem(objective: Objective, random: Callable[..., Tensor]) -> str | None:
    logits, token_weights = random(_TOKENS, _EXPERTS), torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    for scores in (random(_TOKENS, _EXPERTS).clamp(0, 1), torch.zeros(_TOKENS, _EXPERTS, dtype=torch.float64)):
        free = logits.clone().requires_grad_(True)
        called = f"for logits and scores {list(logits.shape)}"
        values, problem = _called(partial(objective.value, free, scores), called, [_TOKENS])
        if problem:
            return problem
        assert values is not None
        if not values.requires_grad:
            return "has a value that does not depend on the logits by differentiable operations"
        (truth,) = torch.autograd.grad((values * token_weights).sum(), free)
        loss, own = objective.value_and_gradient(logits, scores, token_weights)
        if problem := _differs(own, truth, called) or _differs(loss, (values * token_weights).sum().detach(), called):
            return problem
    return None


def _regulation_problem(regulation: Regulation, random: Callable[..., Tensor]) -> str | None:
    state = RegulationState(*(each.double() for each in first_state(regulation, _EXPERTS, _TARGET)))
    tokens = torch.tensor(4.0, dtype=torch.float64)
    seen = Seen(tokens, tokens / 2, torch.tensor([4.0, 0, 1], dtype=torch.float64))
    try:
        after = after_step(regulation, state, seen, _TARGET)
    except Exception as error:  # whatever somebody's function does
        return f"raised {type(error).__name__} in update: {error}"
    for name, value in after._asdict().items():
        if value.shape != getattr(state, name).shape or not value.isfinite().all():
            return f"made {name} {list(value.shape)} of {list(getattr(state, name).shape)}, or not finite, in update"
    if regulation.penalty is None:
        return None
    routing = Routing(random(_TOKENS, _EXPERTS), None, Rule(1.0, _INPUTS))
    try:
        value, gradient = regulation.penalty(routing, after, _TARGET)
    except Exception as error:
        return f"raised {type(error).__name__} in penalty: {error}"
    if list(value.shape) != [_TOKENS] or list(gradient.shape) != [_TOKENS, _EXPERTS]:
        return (
            f"returned {list(value.shape)} and {list(gradient.shape)} from penalty; expected [{_TOKENS}], a value a "
            f"token, and [{_TOKENS}, {_EXPERTS}]"
        )
    return None


def _called(call: Callable[[], Any], called: str, shape: list[int]) -> tuple[Tensor | None, str | None]:
    try:
        returned = call()
    except Exception as error:  # whatever somebody's function does
        return None, f"raised {type(error).__name__}: {error}, {called}"
    if not isinstance(returned, Tensor) or list(returned.shape) != shape:
        got = f"{list(returned.shape)}" if isinstance(returned, Tensor) else f"a {type(returned).__name__}"
        return None, f"returned {got} {called}; expected {shape}"
    if not returned.isfinite().all():
        return None, f"returned values that are not finite {called}"
    return returned, None


def _differs(returned: Tensor | None, truth: Tensor, called: str) -> str | None:
    if returned is not None and torch.allclose(returned, truth, rtol=1e-6, atol=1e-9):
        return None
    return f"has a derivative in closed form that is not that of its value {called}; autograd finds another"
