"""A trial that a process trains after another one is the trial that it would be in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.training.afresh import Afresh
from pipeline.training.machine import peak_memory_mib
from tiny_onn.compiling import compiler_problem

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
    """In a process of its own: a test before this one may have told torch of another compiler, or of none."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [1, 0, 1]


_PROGRAM = """
import json
import torch
from pipeline.training.afresh import Afresh
from tiny_onn.compiling import compiled

def double(x):
    return x * 2

def graphs():  # for which a call had to be compiled
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    traced(x)
    return counters["unique_graphs"] - before

traced, x = compiled(double, 1), torch.ones(3, 4)
counts = [graphs(), graphs()]
Afresh().begin()
print(json.dumps([*counts, graphs()]))
"""
