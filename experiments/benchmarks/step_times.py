"""Times one training step in every variant, in turn within one run; needs torch alone."""

import statistics
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from experiments.benchmarks.measure import (
    DoesNotFit,
    attempt_each,
    build_each,
    free_bytes,
    peak_bytes,
    ratio,
    release,
    seconds_in_turn,
)
from experiments.benchmarks.variants import COMPILED, Size, Step, build
from tiny_onn.compiling import compiler_problem


class Progress(Protocol):
    """Where a measurement tells how far it is."""

    def begin(self, what: str, steps: int) -> None:
        """So many steps follow."""

    def step(self, doing: str) -> None:
        """The next of them begins."""


# Of the router's gradients, relative. Goodness magnifies rounding: in float64 they agree to 1e-10, in float32 to some
# 1e-4, and under bfloat16 autocast, after which `two_pass` and `einsum` route anew in float32, to 0.03 to 0.06.
AGREEMENT, AGREEMENT_OF_AUTOCAST = 0.1, 0.3


def measure(size: Size, repeats: int, threads: int, names: Iterable[str], progress: Progress) -> dict[str, Any]:
    """By variant: `seconds` (median), every repeat's, `peak_bytes`, `x_base`; or why it did not run.

    `base` is what the others are compared with: the compiled plain step, or the nearest thing to it that runs.

    The variants that learn from Goodness must agree on the router's gradient, or this raises.
    """
    torch.set_num_threads(threads)
    # For every size anew, as one training would compile it: torch gives up constants, then all, after a few sizes.
    torch.compiler.reset()
    device = torch.device(size.device)
    names = tuple(names)
    variants: dict[str, Any] = {name: {} for name in names}  # keeps the order
    steps, problems = build_each(
        names, lambda name: Step(name, size), lambda name: _why_not(name, size, device), device
    )
    progress.begin(f"hidden {size.hidden}, {size.seq} tokens", len(steps) * (repeats + 4))
    agreement = _check_agreement(steps, problems, size, progress)
    seconds = seconds_in_turn(steps, repeats, device, progress.step, problems)
    steps.clear()
    release(device)
    base = next((name for name in ("plain_compiled", "plain_eager", *seconds) if name in seconds), None)
    for name, each in seconds.items():
        progress.step(f"{name}, memory")
        variants[name] = {"seconds": statistics.median(each), "all_seconds": each}
        variants[name]["x_base"] = ratio(seconds, name, base) if base else None
        try:
            variants[name]["peak_bytes"] = peak_bytes(build, (name, size), threads, device)
        except DoesNotFit as error:
            variants[name]["peak_bytes"] = None
            variants[name]["memory_problem"] = str(error)
    for name, problem in problems.items():
        variants[name] = {"not_run": problem}
    return {"variants": variants, "base": base, "router_gradients_agree_to": agreement}


def _why_not(name: str, size: Size, device: torch.device) -> str | None:
    if name in COMPILED and (problem := compiler_problem(device)):
        return problem
    if name == "einsum" and size.einsum_bytes > 0.8 * free_bytes(device):
        free = free_bytes(device) / 2**30
        return f"does not fit: one layer's gradients take {size.einsum_bytes / 2**30:.1f} GiB, {free:.1f} GiB are free"
    return None


def _check_agreement(steps: dict[str, Step], problems: dict[str, str], size: Size, progress: Progress) -> float | None:
    """The largest difference between two variants' router gradients, relative to their norm; None if fewer ran."""
    gradients: dict[str, Tensor] = {}

    def look(name: str, step: Step) -> None:
        progress.step(f"{name}, gradients")
        if not name.startswith("plain"):
            gradients[name] = torch.cat([g.flatten() for g in step.router_gradients()])

    attempt_each(steps, look, torch.device(size.device), problems)
    if len(gradients) < 2:
        return None
    (first, truth), *others = reversed(gradients.items())
    worst = 0.0
    for name, gradient in others:
        worst = max(worst, float((gradient - truth).norm() / truth.norm()))
        if not worst < (AGREEMENT_OF_AUTOCAST if size.autocast else AGREEMENT):
            raise AssertionError(f"{name} and {first} differ in the router's gradients by {worst:.1e} of their norm")
    return worst
