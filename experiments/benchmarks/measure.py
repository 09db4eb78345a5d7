"""How the benchmarks measure: seconds in turn within one run, and memory of each variant in a process of its own."""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


class DoesNotFit(Exception):
    """A variant needs more memory than there is; says how much."""


def seconds_in_turn(
    steps: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds of every repeat of every step, taken in turn: one of each, then the next of each.

    The first two rounds are warm-up (compilation, allocators) and are not among them. `on_step` is told the name of
    each step as it begins.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-2, repeats):
        for name, step in steps.items():
            on_step(name)
            _settle(device)
            started = time.perf_counter()
            step()
            _settle(device)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """The median over rounds of one step's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def peak_bytes(build: Callable[..., Callable[[], object]], arguments: tuple[object, ...], threads: int) -> int:
    """Peak memory of a step in a process of its own.

    `build(*arguments)` returns the step, with `.state_bytes`, what it holds between steps, as an attribute; it and its
    arguments must be importable and picklable. On a CPU: that state, and what the process grew by at its highest during
    a step after warm-up. On a GPU: the allocator's own peak.

    Raises:
        DoesNotFit: the process ran out of memory.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(_peak, (build, arguments, threads))
        while not found.ready():
            found.wait(1.0)
            if any(worker.exitcode not in (None, 0) for worker in pool._pool):  # type: ignore[attr-defined]
                raise DoesNotFit("its process was killed")
        return found.get()


def _peak(build: Callable[..., Callable[[], object]], arguments: tuple[object, ...], threads: int) -> int:
    torch.set_num_threads(threads)
    try:
        step = build(*arguments)
        for _ in range(2):
            step()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        highest = 0
        for _ in range(3):
            before = reset_peak()
            step()
            highest = max(highest, peak_since_reset() - before)
        return step.state_bytes + highest  # type: ignore[attr-defined]
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        raise DoesNotFit(str(error).splitlines()[0]) from None


def reset_peak() -> int:
    """Bytes that this process holds, once what is free is given back; `peak_since_reset` counts anew from here on."""
    gc.collect()
    _give_back_what_is_free()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * _status("VmRSS")


def peak_since_reset() -> int:
    """The most bytes that this process held since `reset_peak`."""
    return 1024 * _status("VmHWM")


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _give_back_what_is_free() -> None:
    ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    """A field of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def free_bytes(device: torch.device) -> int:
    """Memory that a step may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
