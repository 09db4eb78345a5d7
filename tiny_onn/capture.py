"""`capture`: the only hooks on models. What they record stands in `tiny_onn.captured`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, overload

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from tiny_onn.captured import (
    HELD,
    UNKNOWN_MASK,
    WITHOUT_COMPILER,
    WITHOUT_CREATE_GRAPH,
    Captured,
    Masks,
    Storage,
)
from tiny_onn.captured_call import CapturedCall, CaptureError, LinearCall
from tiny_onn.layers import SparseProtoLinear, sparse_layers
from tiny_onn.linear_layers import Where, bias_of, select_linear, weight_of

__all__ = [
    "HELD",
    "UNKNOWN_MASK",
    "WITHOUT_COMPILER",
    "WITHOUT_CREATE_GRAPH",
    "CaptureError",
    "Captured",
    "CapturedCall",
    "LinearCall",
    "Masks",
    "Storage",
    "capture",
]


@overload
def capture(
    model: nn.Module,
    *,
    valid: Bool[Tensor, " *b"] | None = ...,
    storage: Storage = ...,
    on_gradient: Callable[[CapturedCall], None] | None = ...,
    masked: bool = ...,
) -> AbstractContextManager[Captured[CapturedCall]]: ...


@overload
def capture(
    model: nn.Module,
    *,
    layers: Where,
    valid: Bool[Tensor, " *b"] | None = ...,
    storage: Storage = ...,
    on_gradient: Callable[[LinearCall], None] | None = ...,
    masked: bool = ...,
) -> AbstractContextManager[Captured[LinearCall]]: ...


def capture(
    model: nn.Module,
    *,
    layers: Where | None = None,
    valid: Bool[Tensor, " *b"] | None = None,
    storage: Storage = "reference",
    on_gradient: Callable[..., None] | None = None,
    masked: bool = False,
) -> AbstractContextManager[Captured[Any]]:
    """Watches the linear layers of `model` (ADR-0004, steps 1 to 3).

    Run the forward passes and the backward inside, and read `calls()` or `norms()` inside: on leaving, whatever
    happened, the hooks are removed and every captured tensor is let go.

    Args:
        model: any module.
        layers: which: types such as `(nn.Linear,)`, qualified names, also with wildcards ("encoder.*.linear1"), or a
            function of name and module. They may be nn.Linear, SparseProtoLinear and the Conv1D of Hugging Face's
            transformers. By default every SparseProtoLinear.
        valid: which tokens count; see `Captured.use_valid`.
        storage: "reference" keeps no copy and raises where a tensor is modified in place; "clone" copies every tensor
            as the ADR's IMP-002 asks, at the cost of the memory.
        on_gradient: called with each call as its gradient arrives, during the backward pass; it may `let_go` of what
            nothing later needs. A second gradient for the same call is then an error.
        masked: of SparseProtoLinear, also capture `computation_output` and `masked_gradient`.

    Raises:
        ValueError: `layers` selects nothing, or something else than linear layers.
        CaptureError: `layers` is given and the model is compiled, where hooks see nothing.
    """
    if layers is None:
        return _capture(model, dict(sparse_layers(model)), valid, storage, on_gradient, masked, counted=False)
    selected = select_linear(model, layers, "layers")
    if any(_is_compiled(module) for module in model.modules()):
        raise CaptureError(f"the model is compiled; {WITHOUT_COMPILER}")
    return _capture(model, selected, valid, storage, on_gradient, masked, counted=True)


@contextmanager
def _capture(
    model: nn.Module,
    layers: dict[str, nn.Module],
    valid: Tensor | None,
    storage: Storage,
    on_gradient: Callable[..., None] | None,
    masked: bool,
    *,
    counted: bool,
) -> Iterator[Captured[Any]]:
    captured: Captured[Any] = Captured(layers, storage, on_gradient, masked)
    captured.use_valid(valid)
    handles: list[Any] = []
    if counted:
        captured.look_for_uses_without_calls(model)
    handles.append(model.register_forward_pre_hook(_passes_of(model, captured)))
    for name, layer in layers.items():
        if isinstance(layer, SparseProtoLinear):
            handles.append(layer.call_point.register_forward_hook(_named(captured.record_sparse, name)))
        else:
            record = _of_layer(layer, captured.record_linear, name)
            handles.append(layer.register_forward_hook(record, prepend=True, with_kwargs=True))
        handles.append(layer.register_forward_pre_hook(_with_gradient, with_kwargs=True))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
        captured.release()


def _named(record: Callable[..., None], name: str) -> Callable[..., None]:
    return lambda module, args, output: record(name, args, output)


def _of_layer(layer: nn.Module, record: Callable[..., Tensor | None], name: str) -> Callable[..., Tensor | None]:
    """A hook of this layer: a copy of a watched model has the hook, too, and is not watched."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        return record(name, args, kwargs, output) if module is layer else None

    return hook


def _passes_of(model: nn.Module, captured: Captured[Any]) -> Callable[..., None]:
    def hook(module: nn.Module, _: Any) -> None:
        if module is model:
            captured.begin_pass()

    return hook


def _is_compiled(module: nn.Module) -> bool:
    """By torch.compile(module), which wraps it, or module.compile()."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _with_gradient(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Has a gradient come to the output of a frozen layer on an input that has none: its router may still learn."""
    frozen = not any(p is not None and p.requires_grad for p in (weight_of(layer), bias_of(layer)))
    if not frozen or not torch.is_grad_enabled():
        return None
    if args:
        return None if args[0].requires_grad else ((args[0].detach().requires_grad_(True), *args[1:]), kwargs)
    name, x = next(iter(kwargs.items()))
    return None if x.requires_grad else (args, kwargs | {name: x.detach().requires_grad_(True)})
