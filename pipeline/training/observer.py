"""A user's own observer, `training.observer`: what it finds in a logged step becomes metrics and figures.

    def observe(step, model, batch, health):
        return {"largest_weight": model.blocks[0].attention.q.mu_weight.abs().max()}

Every worker calls it after each logged step, with gradients off. It gets the step, from 1; the model, unwrapped; this
worker's share of the step's batch; and the routing health of each SparseProtoLinear, by name, of all workers' tokens.
It returns named numbers and matplotlib figures, and changes nothing. The metric of `name` is `observer/name`:

- a number (also a tensor or array that holds one) is averaged over the workers, each with as much weight as its share
  has valid tokens; where all workers found the same, that is the value;
- a pair of numbers is a sum and its count, or weight: the metric is the sum of all workers' sums over that of their
  counts, NaN where the counts add up to 0.

All workers return the same names. A figure is kept as rank 0 made it.
"""

import importlib
import math
import re
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import torch
from torch import nn

from pipeline.data.batch import Batch
from pipeline.drawing import own_style
from pipeline.errors import UserError
from pipeline.measures import OBSERVED
from pipeline.training.agreement import gather_json
from pipeline.training.stopping import TrainingStopped
from tiny_onn.routing_health import Health
from tiny_onn.torch_private import version_of

Observer = Callable[[int, nn.Module, Batch, dict[str, Health]], Mapping[str, Any]]
Numbers = dict[str, tuple[float, float]]
"""By name, a sum and its count."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_EXPECTED = "expected a mapping of names to numbers, pairs (sum, count) or matplotlib figures"
_DPI = 120


class ObserverFailed(Exception):
    """What is wrong with an observer, as a sentence without its subject."""


def load_observer(name: str) -> Observer:
    """Imports `package.module:function`.

    Raises:
        UserError: it cannot be imported, or is no function.
    """
    module, _, attribute = name.partition(":")
    try:
        with own_style():  # which a user's module may import, under a backend that is not there
            value: Any = importlib.import_module(module)
            for part in attribute.split("."):
                value = getattr(value, part)
    except Exception as error:  # whatever somebody's module does when it is imported
        raise UserError(
            f"training.observer: {name!r} cannot be used ({type(error).__name__}: {error}). Expected "
            "package.module:function, which the workers can import too: `pip install -e` its package, or name its "
            "folder in PYTHONPATH."
        ) from error
    if not callable(value):
        raise UserError(
            f"training.observer: {name!r} is a {type(value).__name__}; expected a function of (step, model, batch, "
            "health)"
        )
    observer: Observer = value
    return observer


def observe(
    observer: Observer, step: int, model: nn.Module, batch: Batch, health: dict[str, Health], *, draw: bool
) -> tuple[Numbers, dict[str, bytes]]:
    """Calls an observer on this worker's share; returns its numbers, and its figures as PNG where `draw` is set.

    Raises:
        ObserverFailed: it raised, returned what is neither, or changed the model.
    """
    before = [version_of(parameter) for parameter in model.parameters()]
    training, tokens = model.training, float(batch.valid.sum())
    with own_style(), torch.no_grad():
        try:
            returned = observer(step, model, batch, health)
        except Exception as error:  # whatever somebody's function does
            raise ObserverFailed(f"raised {type(error).__name__}: {error}{_place(error)}") from error
        if not isinstance(returned, Mapping):
            raise ObserverFailed(f"returned a {type(returned).__name__}; {_EXPECTED}")
        numbers: Numbers = {}
        figures: dict[str, bytes] = {}
        for name, value in returned.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ObserverFailed(f"returned the name {name!r}; use at most 64 letters, digits and _.-")
            if hasattr(value, "savefig"):
                figures[name] = _as_png(name, value) if draw else b""
            else:
                numbers[name] = _as_sum(name, value, tokens)
    for (name, parameter), version in zip(model.named_parameters(), before, strict=True):
        if version_of(parameter) != version:
            raise ObserverFailed(f"changed the parameter {name}; it may look at the model, and change nothing")
        if parameter.grad is not None:
            raise ObserverFailed(f"left a gradient in {name}; use torch.autograd.grad, which leaves none")
    if model.training != training:
        raise ObserverFailed("left the model in another mode, by train() or eval(); it may change nothing")
    return numbers, figures


def reduced(name: str, step: int, mine: Numbers | ObserverFailed, device: torch.device) -> dict[str, float]:
    """The observer's metrics over all workers, each of which calls this with what it found.

    Raises:
        TrainingStopped: on all workers, if the observer failed on any, or they do not agree on the names.
    """
    failed = isinstance(mine, ObserverFailed)
    gathered = gather_json({"problem": str(mine)} if failed else {"numbers": mine}, device)
    for rank, each in enumerate(gathered):
        if "problem" in each:
            raise TrainingStopped(
                f"step {step}: training.observer {name!r} {each['problem']} (rank {rank}). Correct it, and resume with "
                "--accept-changed-code; training goes on from the last checkpoint."
            )
    shares: list[dict[str, list[float]]] = [each["numbers"] for each in gathered]
    for rank, share in enumerate(shares):
        if share.keys() != shares[0].keys():
            here, there = (", ".join(sorted(each)) or "nothing" for each in (shares[0], share))
            raise TrainingStopped(
                f"step {step}: training.observer {name!r} returned {here} on rank 0 and {there} on rank {rank}. "
                "Expected the same names on all workers, NaN where there is nothing."
            )
    return {f"{OBSERVED}{key}": _mean([share[key] for share in shares]) for key in shares[0]}


def _mean(shares: list[list[float]]) -> float:
    means = [total / count if count else math.nan for total, count in shares]
    if all(mean == means[0] for mean in means):
        return means[0]
    known = [(total, count) for total, count in shares if count]
    return math.fsum(total for total, _ in known) / math.fsum(count for _, count in known) if known else math.nan


def _as_sum(name: str, value: Any, tokens: float) -> tuple[float, float]:
    try:
        if isinstance(value, tuple | list) and len(value) == 2:
            return float(value[0]), float(value[1])
        if isinstance(value, tuple | list | str | bytes | None):
            raise TypeError
        return float(value) * tokens, tokens
    except (TypeError, ValueError, RuntimeError):
        raise ObserverFailed(f"returned {name!r} as a {_kind(value)}; {_EXPECTED}") from None


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {list(shape)}" if shape is not None else "")


def _as_png(name: str, figure: Any) -> bytes:
    buffer = BytesIO()
    try:
        figure.savefig(buffer, format="png", dpi=_DPI)
    except Exception as error:  # of a figure that is whole only once it is drawn
        raise ObserverFailed(f"returned the figure {name!r}, which cannot be drawn: {error}") from error
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close(figure)  # pyplot would hold on to it
    return buffer.getvalue()


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" (line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})"
