"""A trial that a process trains after another one is the trial that it would be in a process of its own."""

from pathlib import Path

import pytest
import torch

from pipeline.training.afresh import Afresh
from pipeline.training.machine import peak_memory_mib
from tiny_onn.compiling import compiled, compiler_problem

CPU = torch.device("cpu")


def test_random_numbers_are_those_of_a_new_process() -> None:
    with torch.random.fork_rng(devices=[]):
        afresh = Afresh()
        first = torch.rand(3)
        torch.rand(5)
        afresh.begin()
        assert torch.equal(torch.rand(3), first)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak of memory")
def test_the_peak_of_memory_is_that_of_the_trial() -> None:
    before = peak_memory_mib(CPU)
    assert before is not None
    much = torch.ones(round(before * 2**18) + 2**26)  # float32: more than all so far, and 256 MiB
    high = peak_memory_mib(CPU)
    del much
    Afresh().begin()
    after = peak_memory_mib(CPU)
    assert high is not None
    assert after is not None
    assert after < high - 200


@pytest.mark.skipif(compiler_problem() is not None, reason="needs a C++ compiler")
def test_what_was_compiled_for_the_trial_before_is_compiled_anew() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    traced, x = compiled(double, 1), torch.ones(3, 4)
    seen = [_graphs(traced, x) for _ in range(2)]
    Afresh().begin()
    seen.append(_graphs(traced, x))
    assert seen == [1, 0, 1]


def _graphs(function: object, x: torch.Tensor) -> int:
    """How many graphs a call had to be compiled for."""
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    function(x)  # type: ignore[operator]
    return counters["unique_graphs"] - before
