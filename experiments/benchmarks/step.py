"""What does meta-learning cost? One training step in every variant: seconds, ratios within one run, peak memory."""

import statistics
from collections.abc import Iterable
from typing import Any

import torch
import torch._dynamo
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
from experiments.benchmarks.report import Progress, Result, mebibytes, milliseconds
from experiments.benchmarks.variants import COMPILED, Size, Step, build
from tiny_onn.compiling import compiler_problem

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
    torch._dynamo.reset()
    device = torch.device(size.device)
    names = tuple(names)
    found: dict[str, Any] = {name: {} for name in names}  # keeps the order
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
        found[name] = {"seconds": statistics.median(each), "all_seconds": each}
        found[name]["x_base"] = ratio(seconds, name, base) if base else None
        try:
            found[name]["peak_bytes"] = peak_bytes(build, (name, size), threads, device)
        except DoesNotFit as error:
            found[name]["peak_bytes"] = None
            found[name]["memory_problem"] = str(error)
    for name, problem in problems.items():
        found[name] = {"not_run": problem}
    return {"variants": found, "base": base, "router_gradients_agree_to": agreement}


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
    for name, found in others:
        worst = max(worst, float((found - truth).norm() / truth.norm()))
        if not worst < (AGREEMENT_OF_AUTOCAST if size.autocast else AGREEMENT):
            raise AssertionError(f"{name} and {first} differ in the router's gradients by {worst:.1e} of their norm")
    return worst


def run(sizes: list[Size], repeats: int, threads: int, names: tuple[str, ...], progress: Progress) -> Result:
    """The benchmark over several sizes."""
    cells = [(size, measure(size, repeats, threads, names, progress)) for size in sizes]
    rows: list[list[str]] = []
    series: dict[str, dict[str, float]] = {}
    for size, cell in cells:
        base = cell["variants"].get(cell["base"], {})
        for name, each in cell["variants"].items():
            place = [str(size.hidden), str(size.seq), name]
            if "not_run" in each:
                rows.append([*place, each["not_run"], "", "", ""])
                continue
            memory, least = each["peak_bytes"], base.get("peak_bytes")
            rows.append(
                [
                    *place,
                    milliseconds(each["seconds"]),
                    f"{each['x_base']:.2f}",
                    mebibytes(memory) if memory else each["memory_problem"],
                    f"{memory / least:.2f}" if memory and least else "",
                ]
            )
            series.setdefault(name, {})[f"{size.hidden} / {size.seq}"] = each["x_base"]
    first = cells[0][0]
    against = cells[0][1]["base"] or "base"
    return Result(
        question="step",
        title=f"A training step, {first.layers} layers, {threads} threads, {first.device}, median of {repeats}",
        columns=["hidden", "tokens", "variant", "ms", "x", "peak MiB", "x"],
        rows=rows,
        plot_label=f"time / {against}",
        places="hidden / tokens",
        series=series,
        data={
            "layers": first.layers,
            "threads": threads,
            "device": first.device,
            "sizes": [{"hidden": size.hidden, "seq": size.seq, **cell} for size, cell in cells],
            **cells[0][1],
        },
        notes=[f"x: time, and peak memory, over {against}'s in the same run."],
    )
