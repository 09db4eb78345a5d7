"""Elementwise functions by `torch.compile`, where the machine has what it needs; as they are where it has not."""

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def compiler_problem(device: torch.device | str = "cpu") -> str | None:
    """Why `torch.compile` cannot work here for this device; None where it can.

    On a CPU it writes C++ and needs a compiler and Python's headers; on a GPU it needs Triton.
    """
    if torch.device(device).type == "cuda":
        return None if importlib.util.find_spec("triton") else "Triton is not installed"
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++"])):
        return f"there is no C++ compiler: {named} (of CXX) is not found" if named else "there is no C++ compiler"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return f"Python's headers are not installed: no Python.h in {sysconfig.get_paths()['include']}"
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
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
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
        torch._dynamo.maybe_mark_dynamic(tensor, [0, 1][: tensor.ndim])


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)
