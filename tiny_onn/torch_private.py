"""Every private name of torch that this project uses: how it is probed, and what takes its place without it.

No other file names one. `missing` says which of them this version of torch lacks. Without them all results are the
same: changes in place are found by comparing contents, a backward pass by looking at the stack, and compilation takes
longer.
"""

import ast
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

_DYNAMO, _VERSION, _GRAPH_TASK = "torch._dynamo", "_version", "_current_graph_task_id"
_RECOMPUTES = ("unpack_hook", "backward")  # of torch.utils.checkpoint, where they call a model's forward anew


def missing() -> list[str]:
    """A sentence for each private name that this version of torch lacks. Imports nothing."""
    return [
        f"torch {torch.__version__} lacks {name} ({problem}): {without}."
        for name, (probe, without) in _USES.items()
        if (problem := _problem(probe))
    ]


def version_of(tensor: Tensor) -> int:
    """A number that changes when the tensor is changed in place. Without torch's counter, one of its contents."""
    version = getattr(tensor, _VERSION, None)
    return version if isinstance(version, int) else _fingerprint(tensor)


def in_backward_pass() -> bool:
    """Whether this thread is running a backward pass, where checkpointing calls a model's forward anew."""
    current = getattr(torch._C, _GRAPH_TASK, None)
    return current() != -1 if current is not None else _is_recomputing(sys._getframe(1))


def mark_any_size(tensor: Tensor, axes: int | Sequence[int]) -> None:
    """Has `torch.compile` take these axes for such whose size changes; else it finds out by compiling a second time."""
    with contextlib.suppress(AttributeError):
        torch._dynamo.maybe_mark_dynamic(tensor, axes)


def may_have_compiled() -> bool:
    """Whether this process may have compiled anything. To import the compiler, which would tell, takes seconds."""
    return _DYNAMO in sys.modules or _problem(_probe_dynamo) is not None


def compile_in_this_process() -> None:
    """Kernels are compiled in this process: a pool of compilers beside every worker would cost more than it saves."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with contextlib.suppress(ImportError):
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1


def _fingerprint(tensor: Tensor) -> int:
    return hash(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _is_recomputing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in _RECOMPUTES and frame.f_code.co_filename.endswith("torch/utils/checkpoint.py"):
            return True
        frame = frame.f_back
    return False


@functools.cache
def _problem(probe: Callable[[], object]) -> str | None:
    try:
        probe()
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.200}"
    return None


def _probe_version() -> None:
    tensor = torch.zeros(1)
    before = getattr(tensor, _VERSION)
    tensor += 1
    if getattr(tensor, _VERSION) == before:
        raise ValueError("it does not change")


def _probe_backward() -> None:
    if getattr(torch._C, _GRAPH_TASK)() != -1:
        raise ValueError("it is not -1 outside a backward pass")


def _probe_dynamo() -> None:
    source = Path(torch.__file__).with_name("_dynamo") / "decorators.py"
    functions = {each.name: each for each in ast.parse(source.read_text()).body if isinstance(each, ast.FunctionDef)}
    names = [argument.arg for argument in functions["maybe_mark_dynamic"].args.args]
    if len(names) != 2:
        raise TypeError(f"maybe_mark_dynamic takes {names}")


def _probe_inductor() -> None:
    source = Path(torch.__file__).with_name("_inductor") / "config.py"
    if "compile_threads" not in source.read_text():
        raise AttributeError("no compile_threads")


_USES: dict[str, tuple[Callable[[], object], str]] = {
    "Tensor._version": (_probe_version, "changes in place are found by comparing contents, which takes longer"),
    "_C._current_graph_task_id": (_probe_backward, "a backward pass is found by looking at the stack"),
    "_dynamo.maybe_mark_dynamic": (_probe_dynamo, "what is compiled is compiled once more"),
    "_inductor.config.compile_threads": (_probe_inductor, "each worker may start a pool of compilers"),
}
