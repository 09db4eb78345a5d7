"""torch's private names: all are there in the pinned version, and without any of them results are the same."""

import os
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tiny_onn import torch_private
from tiny_onn.torch_private import in_backward_pass, mark_any_size, may_have_compiled, version_of


@pytest.fixture(autouse=True)
def probed_anew():
    torch_private._problem.cache_clear()
    yield
    torch_private._problem.cache_clear()


@pytest.mark.pinned
def test_the_pinned_version_has_all_names() -> None:
    assert torch_private.missing() == []


def _changes(tensor: Tensor) -> list[bool]:
    changed = []
    for change in (lambda t: t, lambda t: t.add_(1), lambda t: t[0].mul_(3), lambda t: t.zero_()):
        before = version_of(tensor)
        change(tensor)
        changed.append(version_of(tensor) != before)
    return changed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_change_in_place_is_found_with_and_without_the_counter(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _changes(torch.ones(2, 3, dtype=dtype, requires_grad=True).detach()) == [False, True, True, True]
    monkeypatch.setattr(torch_private, "_VERSION", "_version_that_is_gone")
    assert _changes(torch.ones(2, 3, dtype=dtype).T) == [False, True, True, True]
    torch_private._problem.cache_clear()
    (said,) = torch_private.missing()
    assert "comparing contents" in said


class _Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answers: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.answers.append(in_backward_pass())
        return x.sin()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_a_forward_pass_that_checkpointing_repeats_is_known(
    reentrant: bool, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gone:
        monkeypatch.setattr(torch_private, "_GRAPH_TASK", "_a_name_that_is_gone")
    asks = _Asks()
    x = torch.ones(3, requires_grad=True)
    checkpoint(asks, x, use_reentrant=reentrant).sum().backward()
    assert asks.answers == [False, True]
    asks(x).sum().backward()
    assert asks.answers == [False, True, False]
    assert bool(torch_private.missing()) == gone


def test_a_compiler_without_the_mark_compiles_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo

    mark_any_size(torch.ones(2), 0)
    monkeypatch.delattr(torch._dynamo, "maybe_mark_dynamic")
    mark_any_size(torch.ones(2), 0)


def test_where_it_cannot_be_known_something_may_have_been_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert not may_have_compiled()
    monkeypatch.setattr(torch, "__file__", "/nowhere/torch/__init__.py")
    torch_private._problem.cache_clear()
    assert may_have_compiled()


@pytest.mark.parametrize("is_there", [True, False])
def test_kernels_are_compiled_in_this_process(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "8")
    with inductor.patch(compile_threads=8):
        if not is_there:
            monkeypatch.setitem(sys.modules, "torch._inductor.config", None)
        torch_private.compile_in_this_process()
        assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "1"  # read where the compiler is imported later
        assert inductor.compile_threads == (1 if is_there else 8)
