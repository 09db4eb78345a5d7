"""What torch's profiler sees of a step, by kind of work; needs torch alone."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

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
    seconds = {kind: took / steps for kind, took in seconds_of(profiler.key_averages(), on_gpu=on_gpu).items()}
    total = sum(whole) / steps
    seconds["all else"] += max(0.0, total - sum(seconds.values()))
    return {kind: seconds[kind] for kind in KINDS}, total


def seconds_of(operators: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """Seconds by kind of what the profiler saw: FunctionEventAvg.

    An operator's time is its own, without that of those that it calls: on a GPU the device's, else the CPU's. A kernel
    on the device is there twice, as itself and as part of the operator that launched it, whose name tells more.
    """
    seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for each in operators:
        if each.device_type == DeviceType.CPU:
            seconds[kind_of(each.key)] += (each.self_device_time_total if on_gpu else each.self_cpu_time_total) / 1e6
    return seconds
