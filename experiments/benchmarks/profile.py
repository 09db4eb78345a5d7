"""Where does the time of a step go? What torch's profiler sees of each variant, by kind of work."""

import os
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import click
import torch
import torch._dynamo
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.report import Progress, Result, milliseconds
from experiments.benchmarks.variants import COMPILED, Size, Step
from tiny_onn.compiling import compiler_problem

KINDS = ("matrix products", "attention", "compiled between them", "optimisers and clipping", "all else")
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::linear", "mkldnn", "mkl::")
_OF_OPTIMISERS = ("adamw", "_foreach", "clip_grad", "Optimizer", "linalg_vector_norm")
_COMPILED = ("Compiled", "compiled", "AOTDispatcher", "fused_")


def kind_of(name: str) -> str:
    """The kind of work, one of KINDS, of an operator by the name that the profiler gives it."""
    lowered = name.lower()
    if lowered.startswith("triton"):  # named after all that was fused into it
        return "compiled between them"
    if "attention" in lowered or "flash" in lowered:
        return "attention"
    if any(word in name for word in _OF_OPTIMISERS):
        return "optimisers and clipping"
    if name.startswith(_PRODUCTS) or "gemm" in lowered or "cutlass" in lowered:
        return "matrix products"
    if any(word in name for word in _COMPILED):
        return "compiled between them"
    return "all else"


def by_kind(step: Callable[[], object], steps: int, device: torch.device) -> tuple[dict[str, float], float]:
    """Seconds of one step by kind, and in all by the clock; `all else` is what no operator accounts for, too."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    whole = []
    os.environ["KINETO_LOG_LEVEL"] = "99"  # or the profiler tells of its start and stop on stderr
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            started = time.perf_counter()
            step()
            if on_gpu:
                torch.cuda.synchronize(device)
            whole.append(time.perf_counter() - started)
    found = {kind: took / steps for kind, took in seconds_of(profiler.key_averages(), on_gpu=on_gpu).items()}
    total = sum(whole) / steps
    found["all else"] += max(0.0, total - sum(found.values()))
    return {kind: found[kind] for kind in KINDS}, total


def seconds_of(operators: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Seconds by kind of what the profiler saw: FunctionEventAvg.

    An operator's time is its own, without that of those that it calls: on a GPU the device's, else the CPU's. A kernel
    on the device is there twice, as itself and as part of the operator that launched it, whose name tells more.
    """
    found: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for each in operators:
        if each.device_type == DeviceType.CPU:
            found[kind_of(each.key)] += (each.self_device_time_total if on_gpu else each.self_cpu_time_total) / 1e6
    return found


def measure(size: Size, repeats: int, threads: int, names: tuple[str, ...], progress: Progress) -> dict[str, Any]:
    """By variant: `seconds` of a step by kind, medians over `repeats` profiles of three steps, taken in turn."""
    torch.set_num_threads(threads)
    torch._dynamo.reset()  # as in `step`
    device = torch.device(size.device)
    steps = {name: Step(name, size) for name in names if not (name in COMPILED and compiler_problem(device))}
    if not steps:
        raise click.UsageError(f"none of {', '.join(names)} can run here: {compiler_problem(device)}")
    progress.begin(f"hidden {size.hidden}, {size.seq} tokens", len(steps) * (repeats + 1))
    for name, step in steps.items():
        progress.step(f"{name}, warm-up")
        for _ in range(3):
            step()
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            progress.step(name)
            kinds, total = by_kind(step, 3, device)
            seen[name].append({**kinds, "whole step": total})
    return {
        name: {kind: median(each[kind] for each in profiles) for kind in (*KINDS, "whole step")}
        for name, profiles in seen.items()
    }


def run(sizes: list[Size], repeats: int, threads: int, names: tuple[str, ...], progress: Progress) -> Result:
    """The benchmark over several sizes; the first variant is what the others are compared with."""
    cells = [(size, measure(size, repeats, threads, names, progress)) for size in sizes]
    shown = list(cells[0][1])
    base = shown[0]
    rows, series = [], {}
    for size, cell in cells:
        for kind in (*KINDS, "whole step"):
            row = [str(size.hidden), str(size.seq), kind]
            for name in shown:
                more = "" if name == base else f" ({1e3 * (cell[name][kind] - cell[base][kind]):+.1f})"
                row.append(milliseconds(cell[name][kind]) + more)
            rows.append(row)
        for name in shown:
            series[f"{name}, {size.hidden} / {size.seq}"] = {kind: 1e3 * cell[name][kind] for kind in KINDS}
    first = cells[0][0]
    return Result(
        question="profile",
        title=f"Milliseconds of a step by kind of work, {first.layers} layers, {threads} threads, {first.device}",
        columns=["hidden", "tokens", "what", *shown],
        rows=rows,
        plot_label="ms",
        places="kind of work",
        series=series,
        data={
            "layers": first.layers,
            "threads": threads,
            "device": first.device,
            "sizes": [{"hidden": size.hidden, "seq": size.seq, "seconds": cell} for size, cell in cells],
        },
        notes=[f"In brackets: more, or less, than {base}. Profiling itself slows a step, small ones most."],
    )
