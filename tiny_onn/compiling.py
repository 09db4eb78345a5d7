"""Elementwise functions by `torch.compile`, where the machine has what it needs; as they are where it has not."""

import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tiny_onn.torch_private import mark_any_size

Result = TypeVar("Result")
_TRY_S = 60
_CACHE = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps what it compiles, if not in the folder for temporary files
# With what Inductor's own code includes and links.
_TINY = """#include <cmath>
#include <omp.h>
extern "C" int tiny() { return omp_get_max_threads() > 0 && std::sqrt(4.0) == 2.0 ? 7 : 0; }
"""


def compiler_problem(device: torch.device | str = "cpu") -> str | None:
    """Why `torch.compile` cannot work here for this device; None where it can.

    On a CPU it writes C++ and needs a compiler and Python's headers: something tiny is compiled and loaded, once in a
    process, where torch keeps what it compiles. On a GPU it needs Triton, and that a C compiler.
    """
    for switch in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        if os.environ.get(switch) == "1":
            return f"{switch}=1 switches it off"
    if torch.device(device).type == "cuda":
        if not importlib.util.find_spec("triton"):
            return "Triton is not installed"
        named = os.environ.get("CC")
        has_compiler = any(shutil.which(name) for name in ([named] if named else ["gcc", "clang", "cc"]))
        return None if has_compiler else "there is no C compiler, which Triton needs"
    named = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [named] if named else ["g++", "clang++", "c++"])), None)
    if compiler is None:
        return f"there is no C++ compiler: {named} (of CXX) is not found" if named else "there is no C++ compiler"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return f"Python's headers are not installed: no Python.h in {sysconfig.get_paths()['include']}"
    return _problem_of_a_try(compiler, os.environ.get(_CACHE) or tempfile.gettempdir())


@functools.cache
def _problem_of_a_try(compiler: str, folder: str) -> str | None:
    """What is wrong with compiling a function into `folder` and loading it from there; None where nothing is."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="try-") as place:
            source, library = Path(place, "tiny.cpp"), Path(place, "tiny.so")
            source.write_text(_TINY)
            words = [compiler, "-shared", "-fPIC", "-fopenmp", str(source), "-o", str(library)]
            done = subprocess.run(words, capture_output=True, text=True, timeout=_TRY_S, check=False)
            if done.returncode != 0:
                reason = next(iter((done.stderr or done.stdout).strip().splitlines()), f"status {done.returncode}")
                return f"the C++ compiler {compiler} does not work ({reason[:200]})"
            if ctypes.CDLL(str(library)).tiny() != 7:
                return f"what the C++ compiler {compiler} makes is wrong"
    except subprocess.TimeoutExpired:
        return f"the C++ compiler {compiler} takes over {_TRY_S} s for a line"
    except OSError as error:  # of the folder, too: one that is mounted noexec lets nothing be loaded
        return f"what is compiled cannot be kept and loaded in {folder} ({error}); {_CACHE} names another"
    return None


def compiled(function: Callable[..., Result], rows: int) -> Callable[..., Result]:
    """`function` compiled once for any number of rows (tokens).

    Args:
        function: its first `rows` arguments are tensors whose first axis is the tokens; their number may change from
            call to call without another compilation. All other sizes are constants.
    """
    fast = _compiled(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Result:
        if torch.compiler.is_compiling():  # within a larger compiled region: let it see the function itself
            return function(*arguments)
        for tensor in arguments[:rows]:
            if isinstance(tensor, Tensor):
                mark_any_size(tensor, 0)
        return fast(*arguments)

    return call


def compiled_amid_eager(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function` of `compiled`, run as such even where the stance of the compiler is "force_eager"."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Result:
        with torch.compiler.set_stance("default"):
            return function(*arguments)

    return call


def any_size(*tensors: Tensor) -> None:
    """Has what is compiled for these tensors serve any sizes of their first two axes, rows and tokens."""
    for tensor in tensors:
        mark_any_size(tensor, [0, 1][: tensor.ndim])


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)
