"""Variants that do not fit are reported and released; measurements use the device that is named."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from experiments.benchmarks import measure
from experiments.benchmarks.measure import DoesNotFit, attempt, peak_bytes, seconds_in_turn

CPU = torch.device("cpu")


class Greedy:
    """A step that holds a tensor, and runs out of memory from its `last`th call on."""

    state_bytes = 0

    def __init__(self, error: Exception, last: int = 0) -> None:
        self.error, self.left = error, last
        self.held = torch.zeros(7)

    def __call__(self) -> None:
        also_held = torch.zeros(7)
        self.left -= 1
        if self.left < 0:
            also_held += 1
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_running_out_of_memory_is_recognized_and_frees_what_was_held(error: Exception) -> None:
    seen: list[weakref.ref] = []

    def call() -> None:
        large = torch.zeros(7)
        seen.append(weakref.ref(large))
        raise error.with_traceback(None)

    with pytest.raises(DoesNotFit) as caught:
        attempt(call, CPU)
    assert caught.value.__context__ is None
    error.__traceback__ = None  # this test's own hold on it
    gc.collect()
    assert seen[0]() is None


def test_another_error_is_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="allocated twice"):
        attempt(lambda: Greedy(RuntimeError("allocated twice"))(), CPU)


@pytest.mark.parametrize("last", [0, 1, 3])
def test_a_step_that_does_not_fit_leaves_the_others_to_be_timed(last: int) -> None:
    steps: dict[str, Callable[[], object]] = {
        "small": lambda: None,
        "large": Greedy(torch.OutOfMemoryError("Tried to allocate 64.00 GiB"), last),
        "other": lambda: None,
    }
    large, problems = weakref.ref(steps["large"]), dict[str, str]()
    seconds = seconds_in_turn(steps, 3, CPU, problems=problems)
    assert {name: len(each) for name, each in seconds.items()} == {"small": 3, "other": 3}
    assert problems == {"large": "does not fit: Tried to allocate 64.00 GiB"}
    gc.collect()
    assert large() is None
    with pytest.raises(DoesNotFit, match=r"64\.00 GiB"):
        seconds_in_turn({"large": Greedy(torch.OutOfMemoryError("Tried to allocate 64.00 GiB"))}, 3, CPU)


def test_a_process_that_runs_out_of_memory_says_so() -> None:
    with pytest.raises(DoesNotFit, match="no room"):
        peak_bytes(Greedy, (MemoryError("no room"),), 1, CPU)


def test_a_gpus_peak_is_that_of_the_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, Any]] = []

    def stand_in(name: str, result: Any = None) -> Callable[..., Any]:
        return lambda *device: told.append((name, *device)) or result

    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, stand_in(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", stand_in("max_memory_allocated", 42))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(told.append(("within", device))))
    second = torch.device("cuda:1")
    assert measure._peak_of_step(lambda: stand_in("step"), (), second) == 42
    reset, step, settled, peak = told[-4:]
    assert (reset, step, settled) == (("reset_peak_memory_stats", second), ("step",), ("synchronize", second))
    assert peak == ("max_memory_allocated", second)
    told.clear()
    measure.release(second)
    assert told == [("within", second), ("empty_cache",)]
