"""How the benchmarks measure: seconds in turn within one run, and memory of each variant in a process of its own."""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

Step = TypeVar("Step", bound=Callable[[], object])
Found = TypeVar("Found")
# Of errors that torch's allocators, CUDA's driver and cuBLAS raise as a plain RuntimeError.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


class DoesNotFit(Exception):
    """A variant needs more memory than there is; says how much."""


def attempt(call: Callable[[], Found], device: torch.device) -> Found:
    """What the call returns.

    Raises:
        DoesNotFit: it ran out of memory; what it held is free again.
    """
    try:
        return call()
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
    release(device)  # out here, where the error, and with it every tensor of the frames that it passed, is gone
    raise DoesNotFit(problem)


def build_each(
    names: Iterable[str], build: Callable[[str], Step], why_not: Callable[[str], str | None], device: torch.device
) -> tuple[dict[str, Step], dict[str, str]]:
    """The step of each name; and, of those that cannot run or do not fit, why."""
    steps: dict[str, Step] = {}
    problems: dict[str, str] = {}
    for name in names:
        if problem := why_not(name):
            problems[name] = problem
            continue
        try:
            steps[name] = attempt(partial(build, name), device)
        except DoesNotFit as error:
            problems[name] = f"does not fit: {error}"
    return steps, problems


def attempt_each(
    steps: dict[str, Step], call: Callable[[str, Step], object], device: torch.device, problems: dict[str, str]
) -> None:
    """Calls `call` with each step; one that does not fit is taken out of `steps`, and `problems` says why."""
    for name in list(steps):
        try:
            attempt(partial(call, name, steps[name]), device)
        except DoesNotFit as error:
            problems[name] = f"does not fit: {error}"
            del steps[name]
            release(device)


def seconds_in_turn(
    steps: dict[str, Step],
    repeats: int,
    device: torch.device,
    on_step: Callable[[str], None] = lambda _: None,
    problems: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every repeat of every step, taken in turn: one of each, then the next of each.

    The first two rounds are warm-up (compilation, allocators) and are not among them. `on_step` is told the name of
    each step as it begins. A step that runs out of memory is taken out of `steps`, and `problems` says why.

    Raises:
        DoesNotFit: a step ran out of memory, and there is no `problems` to say so in.
    """
    unfit: dict[str, str] = {} if problems is None else problems
    seconds: dict[str, list[float]] = {name: [] for name in steps}

    def timed(repeat: int, name: str, step: Callable[[], object]) -> None:
        on_step(name)
        _settle(device)
        started = time.perf_counter()
        step()
        _settle(device)
        if repeat >= 0:
            seconds[name].append(time.perf_counter() - started)

    for repeat in range(-2, repeats):
        attempt_each(steps, partial(timed, repeat), device, unfit)
        if problems is None and unfit:
            raise DoesNotFit(str(unfit))
    return {name: seconds[name] for name in steps}


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """The median over rounds of one step's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def peak_bytes(
    build: Callable[..., Callable[[], object]], arguments: tuple[object, ...], threads: int, device: torch.device
) -> int:
    """Peak memory of a step in a process of its own.

    `build(*arguments)` returns the step, which runs on `device`, with `.state_bytes`, what it holds between steps, as
    an attribute; it and its arguments must be importable and picklable. On a CPU: that state, and what the process grew
    by at its highest during a step after warm-up. On a GPU: the allocator's own peak.

    Raises:
        DoesNotFit: the process ran out of memory.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply_async(_peak, (build, arguments, threads, device))
        while not peak.ready():
            peak.wait(1.0)
            if any(worker.exitcode not in (None, 0) for worker in pool._pool):  # type: ignore[attr-defined]
                raise DoesNotFit("its process was killed")
        return peak.get()


def _peak(
    build: Callable[..., Callable[[], object]], arguments: tuple[object, ...], threads: int, device: torch.device
) -> int:
    torch.set_num_threads(threads)
    return attempt(partial(_peak_of_step, build, arguments, device), device)


def _peak_of_step(
    build: Callable[..., Callable[[], object]], arguments: tuple[object, ...], device: torch.device
) -> int:
    step = build(*arguments)
    for _ in range(2):
        step()
    if device.type == "cuda":
        _settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        _settle(device)
        return torch.cuda.max_memory_allocated(device)
    highest = 0
    for _ in range(3):
        before = reset_peak()
        step()
        highest = max(highest, peak_since_reset() - before)
    return step.state_bytes + highest  # type: ignore[attr-defined]


def reset_peak() -> int:
    """Bytes that this process holds, once what is free is given back; `peak_since_reset` counts anew from here on."""
    gc.collect()
    _give_back_what_is_free()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * _status("VmRSS")


def peak_since_reset() -> int:
    """The most bytes that this process held since `reset_peak`."""
    return 1024 * _status("VmHWM")


def release(device: torch.device) -> None:
    """Gives back the memory that nothing holds any more: other processes and `free_bytes` see none that is cached."""
    gc.collect()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


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
