"""Does a learning cost of one's own keep its contract? Tried on a few numbers, before anything is trained with it."""

import torch
from torch import Tensor

from tiny_onn.learning_cost import COSTS, LayerCost, LearningCost, TokenCost, WeightState
from tiny_onn.mas import mas

_TOKENS, _EXPERTS, _INPUTS = 5, 3, 7  # all different, so that no axis passes for another


def cost_problem(cost: LearningCost) -> str | None:
    """What is wrong with a learning cost, as a sentence without its subject; None where nothing is.

    It is called as the engines would call it, also with what is rare: gradients that are exactly 0, a second moment
    before the first step, and, of a token cost, no token at all, as a worker's share may hold none. Nothing random is
    drawn from the generators that a model is initialised by.
    """
    # A caller may be building a model on the meta device, which has no values to look at.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        numbers = torch.Generator().manual_seed(0)
        weight = torch.randn(_EXPERTS, _INPUTS, generator=numbers)
        calls: list[dict[str, Tensor | WeightState]]
        if isinstance(cost, LayerCost):
            gradient = torch.randn(_EXPERTS, _INPUTS, generator=numbers)
            gradient[1] = 0
            calls = [{"weight_gradient": gradient}, {"weight_gradient": torch.zeros_like(gradient)}]
        else:
            grad_output = torch.randn(_TOKENS, _EXPERTS, generator=numbers)
            grad_output[1, 2] = grad_output[3] = 0
            token = {"grad_output": grad_output, "x": torch.randn(_TOKENS, _INPUTS, generator=numbers)}
            none = {name: tensor[:0] for name, tensor in token.items()}
            moments = (torch.zeros_like(weight), weight.square()) if cost.needs_second_moment else (None,)
            calls = [{**each, "weight": WeightState(weight, moment)} for moment in moments for each in (token, none)]
        for given in calls:
            problem = _problem_of_a_call(cost, given)
            if problem:
                return problem
    return None


def twin_of(cost: LearningCost) -> str | None:
    """The known learning cost that ranks experts exactly as `cost` does; None where there is none.

    mas(C) divides each token's costs by the largest, so a factor that all experts of a token share changes nothing:
    Goodness, and with it training, is that of the other arm.
    """
    if isinstance(cost, LayerCost) or cost.needs_second_moment or cost in COSTS.values():
        return None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        numbers = torch.Generator().manual_seed(1)
        shapes = (_TOKENS, _EXPERTS), (_TOKENS, _INPUTS), (_EXPERTS, _INPUTS)
        g, x, weight = (torch.randn(*shape, generator=numbers, dtype=torch.float64) for shape in shapes)
        measured = mas(cost.measure(g, x, WeightState(weight)))
        for name in ("per_token", "relative"):
            known = COSTS[name]
            assert isinstance(known, TokenCost)
            if torch.allclose(measured, mas(known.measure(g, x, WeightState(weight))), rtol=1e-6, atol=1e-9):
                return name
    return None


def _problem_of_a_call(cost: LearningCost, given: dict[str, Tensor | WeightState]) -> str | None:
    tensors = {name: value.weight if isinstance(value, WeightState) else value for name, value in given.items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    called = "for " + ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
    first = next(iter(tensors.values()))
    shape = list(first.shape) if isinstance(cost, TokenCost) else [len(first)]
    meaning = "each token and expert" if isinstance(cost, TokenCost) else "each expert"
    expected = f"expected {_kind(first)} {shape}, one cost for {meaning}"
    try:
        returned = cost.measure(*given.values())  # type: ignore[arg-type]
    except Exception as error:  # whatever somebody's function does
        absent = isinstance(cost, TokenCost) and not cost.needs_second_moment and "NoneType" in str(error)
        hint = "; weight.second_moment is there for a TokenCost(..., needs_second_moment=True)" if absent else ""
        return f"raised {type(error).__name__}: {error}, {called}; {expected}{hint}"
    if not isinstance(returned, Tensor):
        return f"returned a {type(returned).__name__} {called}; {expected}"
    if list(returned.shape) != shape or returned.dtype != first.dtype:
        return f"returned {_kind(returned)} {list(returned.shape)} {called}; {expected}"
    for name, tensor in tensors.items():
        if not torch.equal(tensor, before[name]):
            return f"changed {name} in place, which the backward pass still needs; expected it to be left as it is"
    rare = ", where some gradients are exactly 0, as happens in training"
    if not returned.isfinite().all():
        return f"returned values that are not finite {called}{rare}; expected finite ones, 0 or above"
    if (returned < 0).any():
        return f"returned negative values (lowest {returned.min():.3g}) {called}; expected 0 or above"
    return None


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
