"""Which optimizer trains the two streams: AdamW, SGD, or one of the user's own."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, reason
from pipeline.settings.config import TrainingConfig
from tiny_onn.arm import Arm
from tiny_onn.dynamics import second_moment_problem
from tiny_onn.layers import computation_parameters, router_parameters

MOMENTUM = 0.9  # of sgd
_STATE = {"adamw": 2.0, "sgd": 1.0}  # numbers for each of a parameter
_CLASSES: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
Factory = Callable[..., torch.optim.Optimizer]
"""Called with groups of parameters, each with its weight_decay, and lr."""


def optimizer_factory(training: TrainingConfig) -> Factory:
    """What `training.optimizer` names.

    Raises:
        UserError: one's own cannot be imported, or cannot be called.
    """
    name = training.optimizer
    if name == "adamw":
        return partial(torch.optim.AdamW, fused=True)
    if name == "sgd":
        return partial(torch.optim.SGD, momentum=MOMENTUM)
    module, _, attribute = name.partition(":")
    try:
        imported = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever somebody's module does when it is imported
        raise UserError(
            f"training.optimizer: {name!r} cannot be used ({reason(error)}). Expected adamw, sgd or "
            "package.module:attribute, which the workers can import too: `pip install -e` its package, or name its "
            "folder in PYTHONPATH."
        ) from error
    if not callable(imported):
        raise UserError(
            f"training.optimizer: {name!r} is a {type(imported).__name__}; expected a class or function that is called "
            "with groups of parameters and lr, and returns a torch.optim.Optimizer"
        )
    factory: Factory = imported
    return factory


def optimizers(model: nn.Module, training: TrainingConfig) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """One for each stream, computation first; weight decay on the computation stream's matrices only."""
    factory, computation = optimizer_factory(training), computation_parameters(model)
    groups = [
        {"params": [p for p in computation if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in computation if p.ndim < 2], "weight_decay": 0.0},
    ]
    router = [{"params": router_parameters(model), "weight_decay": 0.0}]
    return factory(groups, lr=training.learning_rate), factory(router, lr=training.router_learning_rate)


def optimizer_problem(training: TrainingConfig, arm: Arm) -> str | None:
    """Why the optimizer cannot train the arm; None where it can.

    One's own is tried on a few numbers: it has to be a torch.optim.Optimizer that takes a step without a closure,
    minimises, and keeps tensors alone in its state, as checkpoints hold them.

    Raises:
        UserError: as `optimizer_factory`.
    """
    if training.optimizer in _CLASSES:  # no step is tried: torch would first import its compiler
        return second_moment_problem(arm, _CLASSES[training.optimizer])
    torch_state = torch.random.get_rng_state()
    try:
        return _problem(training, arm, optimizer_factory(training))
    finally:
        torch.random.set_rng_state(torch_state)


def state_per_parameter(training: TrainingConfig) -> float:
    """How many numbers the optimizer keeps for each number of a matrix: of adamw two, of sgd one, of one's own as a
    step on a matrix of 256 x 256 shows.

    Raises:
        UserError: as `optimizer_factory`.
    """
    if training.optimizer in _STATE:
        return _STATE[training.optimizer]
    parameter = nn.Parameter(torch.zeros(256, 256))
    with torch.random.fork_rng(devices=[]):
        optimizer = optimizer_factory(training)([{"params": [parameter], "weight_decay": 0.0}], lr=1e-3)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    kept = (value for value in optimizer.state[parameter].values() if isinstance(value, Tensor) and value.ndim)
    return sum(value.numel() for value in kept) / parameter.numel()


def _problem(training: TrainingConfig, arm: Arm, factory: Factory) -> str | None:
    parameters = [nn.Parameter(torch.full(shape, 0.5)) for shape in ((4, 3), (4,))]
    before = [p.detach().clone() for p in parameters]
    groups = [{"params": [p], "weight_decay": 0.0} for p in parameters]
    try:
        optimizer: Any = factory(groups, lr=1e-3)
        if not isinstance(optimizer, torch.optim.Optimizer):
            return f"returned a {type(optimizer).__name__}; expected a torch.optim.Optimizer"
        for _ in range(2):
            for p in parameters:
                p.grad = torch.ones_like(p)
            optimizer.step()
            optimizer.zero_grad()
    except Exception as error:  # whatever somebody's optimizer does
        return f"cannot take a step: {type(error).__name__}: {error}. It is called as optimizer(groups, lr=...).step()"
    for state in optimizer.state_dict()["state"].values():
        for slot, value in state.items():
            if not isinstance(value, Tensor):
                return f"keeps {slot!r}, a {type(value).__name__}, in its state; checkpoints hold tensors alone"
    if not all(bool((p < was).all()) for p, was in zip(parameters, before, strict=True)):
        return "does not go against the gradient: parameters with a gradient of 1 did not become smaller"
    return second_moment_problem(arm, type(optimizer))
