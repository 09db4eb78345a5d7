"""What does it cost to get one layer's per-token learning costs from its input and the gradient at its output?"""

import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.extraction_methods import CHUNK, METHODS, Extraction, LayerSize, build
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

# Relative, of every single cost, in float32: a sum of H squares in another order, some sqrt(H) roundings of 6e-8 apart.
TOLERANCE = 1e-5
BASELINE = "forward_backward"


def measure(
    size: LayerSize, repeats: int, threads: int, progress: Progress, names: Iterable[str] = tuple(METHODS)
) -> dict[str, dict[str, Any]]:
    """By method: `seconds` (median), every repeat's, `x_factored`, `peak_bytes`, `peak_x_factored`, and for methods
    that work through a backward pass the `seconds_above` that pass and `above_x_factored`; or why it was `not_run`.

    Raises:
        AssertionError: a method's costs are not those of `factored`, to TOLERANCE.
    """
    torch.set_num_threads(threads)
    device = torch.device(size.device)
    names = tuple(names)
    methods: dict[str, dict[str, Any]] = {name: {} for name in names}  # keeps the order
    calls, problems = build_each(
        names, lambda name: Extraction(name, size), lambda name: _why_not(name, size, device), device
    )
    progress.begin(f"hidden {size.hidden}, {size.seq} tokens", len(calls) * (repeats + 4))
    differences = check(calls, device, problems, progress)
    seconds = seconds_in_turn(calls, repeats, device, progress.step, problems)
    calls.clear()
    release(device)
    for name, taken in seconds.items():
        progress.step(f"{name}, memory")
        methods[name] = {"seconds": statistics.median(taken), "all_seconds": taken, **_times(name, seconds)}
        if name in differences:
            methods[name]["differs_by"] = differences[name]
        try:
            methods[name]["peak_bytes"] = peak_bytes(build, (name, size), threads, device)
        except DoesNotFit as error:
            methods[name] |= {"peak_bytes": None, "memory_problem": str(error)}
    for name, problem in problems.items():
        methods[name] = {"not_run": problem}
    base = methods.get("factored", {}).get("peak_bytes")
    for each in methods.values():
        if base and each.get("peak_bytes"):
            each["peak_x_factored"] = each["peak_bytes"] / base
    return methods


def check(
    calls: dict[str, Extraction], device: torch.device, problems: dict[str, str], progress: Progress
) -> dict[str, float]:
    """By how much each method's costs differ from `factored`'s, relative, at the worst.

    One that does not fit is taken out of `calls`, and `problems` says why.

    Raises:
        AssertionError: by more than TOLERANCE.
    """
    differences = {}

    def look(name: str, call: Extraction) -> None:
        progress.step(f"{name}, check")
        norms = call()
        if norms is None:
            return
        difference = _difference(norms, call)
        if not difference <= TOLERANCE:
            raise AssertionError(f"{name}'s costs differ from the factored ones by {difference:.1e}, relative")
        differences[name] = difference

    attempt_each(calls, look, device, problems)
    return differences


def _difference(norms: Tensor, call: Extraction) -> float:
    truth = METHODS["factored"].prepare(call.x, call.g)()
    assert truth is not None
    if call.method.gives == "token":
        truth = torch.linalg.vector_norm(truth, dim=-1)
    if norms.shape != truth.shape:
        return float("inf")
    return float(((norms - truth).abs() / truth).max())


def _why_not(name: str, size: LayerSize, device: torch.device) -> str | None:
    method = METHODS[name]
    if problem := method.problem():
        return problem
    needed, free = method.bytes_needed(size), free_bytes(device)
    if needed > 0.8 * free:
        return f"does not fit: its gradients take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    return None


def _times(name: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    times = {}
    if "factored" in seconds:
        times["x_factored"] = ratio(seconds, name, "factored")
    if METHODS[name].through_backward and name != BASELINE and BASELINE in seconds:
        above = [a - b for a, b in zip(seconds[name], seconds[BASELINE], strict=True)]
        times["seconds_above"] = statistics.median(above)
        if "factored" in seconds:
            times["above_x_factored"] = statistics.median(
                a / b for a, b in zip(above, seconds["factored"], strict=True)
            )
    return times


def run(sizes: list[LayerSize], repeats: int, threads: int, progress: Progress) -> Result:
    """The benchmark over several sizes."""
    cells = [(size, measure(size, repeats, threads, progress)) for size in sizes]
    series: dict[str, dict[str, float]] = {}
    rows = []
    for size, methods in cells:
        for name, each in methods.items():
            rows.append([f"{size.hidden}/{size.seq}", name, *_row(each)])
            if "x_factored" in each and name != "factored":  # which is 1 everywhere
                series.setdefault(name, {})[f"{size.hidden} / {size.seq}"] = each["x_factored"]
    device = sizes[0].device
    return Result(
        question="extraction",
        title=f"Per-token learning costs of one layer, {threads} threads, {device}, median of {repeats}",
        columns=["H/S", "method", "ms", "x", "above", "x", "MiB", "x"],  # fits 80 columns
        rows=rows,
        plot_label="time / factored",
        places="hidden / tokens",
        series=series,
        data={
            "threads": threads,
            "device": device,
            "sizes": [{"hidden": size.hidden, "seq": size.seq, "methods": methods} for size, methods in cells],
            "methods": cells[0][1],
        },
        notes=[*_NOTES, *(note for size, methods in cells for note in against_opacus(size, methods))],
    )


def _row(each: dict[str, Any]) -> list[str]:
    if "not_run" in each:
        return [each["not_run"], "", "", "", "", ""]
    memory = each["peak_bytes"]
    return [
        _short(each["seconds"] * 1e3),
        _short(each.get("x_factored")),
        _short(each["seconds_above"] * 1e3) if "seconds_above" in each else "",
        _short(each.get("above_x_factored")),
        mebibytes(memory) if memory else each["memory_problem"],
        _short(each.get("peak_x_factored")),
    ]


def _short(number: float | None) -> str:
    """Three digits or a little more, for a table; nothing for None."""
    return "" if number is None else f"{number:.{2 if abs(number) < 10 else 1 if abs(number) < 100 else 0}f}"


_NOTES = (
    "H/S: hidden / tokens. ms: median of the whole. above: ms above forward_backward in the same round. MiB: peak "
    "memory. x: each of these over `factored`'s.",
    "factored, einsum_chunked, einsum, vmap and function are timed from x and g to the costs. The others work in "
    "hooks: timed is forward and backward of the one layer (no bias; gradients of weight and input) with their hook, "
    "and the norms of what it left. forward_backward is that pass without a hook; what is above it is noise, even "
    "below zero, where the hook does little. Whatever was built is freed within the time.",
    "opacus_ghost and backpack_l2 answer a smaller question: one norm a token, of the whole weight's gradient, from "
    "which the rows' costs cannot be had. They agree with the root of the rows' summed squares, the others with every "
    f"row's factored cost, to {TOLERANCE:.0e}, relative.",
    f"einsum_chunked, vmap and function take {CHUNK} tokens at a time. Peak memory includes x and g, the layer's "
    "weight where there is one, and on a CPU what the allocator does not hand back at once.",
)


def against_opacus(size: LayerSize, methods: dict[str, dict[str, Any]]) -> list[str]:
    """How factored norms compare with Opacus' materialised gradients in time and memory; nothing if not both ran."""
    opacus, factored = methods.get("opacus_per_sample", {}), methods.get("factored", {})
    if "x_factored" not in opacus or not opacus.get("peak_x_factored"):
        return []
    in_hook = methods["factored_in_hook"]["seconds"]
    return [
        f"Hidden {size.hidden}, {size.seq} tokens, Opacus' materialised per-sample gradients against factored norms: "
        f"{opacus['above_x_factored']:.0f} times the time above the pass, {opacus['seconds'] / in_hook:.1f} times the "
        f"time pass and all, {opacus['peak_x_factored']:.0f} times the memory "
        f"({milliseconds(factored['seconds'])} ms, {mebibytes(factored['peak_bytes'])} MiB)."
    ]
