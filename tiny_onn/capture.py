"""The only hooks: what every call of every SparseProtoLinear saw, and the gradient that came back to it.

Pairing is by call. Tensor hooks fire in backward order, so a gradient is never matched to an input by its place in a
list: each call's own hook holds the record that it fills.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tiny_onn.layers import CallPoint, SparseProtoCall, SparseProtoLinear, sparse_layers
from tiny_onn.routing import Routing, at_least_float32

Storage = Literal["reference", "clone"]

WITHOUT_COMPILER = (
    "hooks see nothing of what torch.compile has compiled; leave the model as it is, or use engine='fused'"
)

WITHOUT_CREATE_GRAPH = (
    "create_graph=True: Goodness is made of the gradients of one ordinary backward pass, and gradients of gradients, "
    "as in a gradient penalty, are not among them"
)
UNKNOWN_MASK = (
    "was computed anew in the backward pass, after several forward passes, and which of their masks of valid tokens it "
    "had cannot be told; use checkpoint(..., use_reentrant=False), or a backward pass before the next use_valid"
)


HELD = ("x", "masked_output", "routing", "grad_output", "computation_output", "masked_gradient")  # tensors of a call


class CaptureError(RuntimeError):
    """A captured call cannot be trusted. Names the module and the call."""


class Masks:
    """How many masks, given one before each forward pass, may be the one of a call that a backward pass repeats."""

    def __init__(self) -> None:
        self.pending = -1  # the first is that of the whole step, and none of a forward pass's own
        self._answered = False

    def next(self) -> None:
        """Another mask from here on."""
        self.pending = 1 if self._answered else self.pending + 1
        self._answered = False

    def arrived(self) -> None:
        """A gradient came: the forward passes so far are taken to be done with by the next mask."""
        self._answered = True


@dataclass(eq=False)
class CapturedCall:
    """One call of one SparseProtoLinear; all tensors detached.

    `grad_output` is dL/d(computation_output), summed over all backward passes that reached the call. `valid` marks the
    tokens that count; None is all of them. `computation_output` and `masked_gradient`, dL/d(masked_output), are there
    where `capture(..., masked=True)` asks for them.
    """

    module_name: str
    module: SparseProtoLinear
    call_index: int
    x: Float[Tensor, "*b i"]
    masked_output: Float[Tensor, "*b o"]
    routing: Routing
    valid: Bool[Tensor, " *b"] | None
    during_backward: bool
    mask_unknown: bool = False
    grad_output: Float[Tensor, "*b o"] | None = None
    computation_output: Float[Tensor, "*b o"] | None = None
    masked_gradient: Float[Tensor, "*b o"] | None = None
    arrived: bool = False
    _versions: list[tuple[str, Tensor, int]] = field(default_factory=list)

    @cached_property
    def _valid_places(self) -> Tensor:
        assert self.valid is not None
        return self.valid.reshape(-1).nonzero().squeeze(1)

    @property
    def title(self) -> str:
        """The call's name in an error."""
        return f"call {self.call_index} of {self.module_name!r}"

    def check_unchanged(self) -> None:
        """Raises CaptureError where a tensor that is held by reference has been written to since."""
        for name, tensor, version in self._versions:
            if tensor._version != version:
                raise CaptureError(
                    f"{name} of {self.title} was modified in place after it was captured, so its values are lost; "
                    'use an out-of-place operation, or capture(..., storage="clone")'
                )

    def watch_version(self, name: str, tensor: Tensor) -> None:
        """Has `check_unchanged` look at a tensor that is held by reference."""
        self._versions.append((name, tensor, tensor._version))

    def let_go(self, *names: str) -> None:
        """Drops fields that nothing later needs, so that their memory is free before the backward pass ends."""
        for name in names:
            if name == "routing":
                self.routing = self.routing._replace(match=torch.empty(0), gate=None, chosen=None)
            else:
                setattr(self, name, torch.empty(0) if name in ("x", "masked_output") else None)
        gone = {*names, *(("match", "gate") if "routing" in names else ())}
        self._versions = [entry for entry in self._versions if entry[0] not in gone]

    def select(self, tensor: Float[Tensor, "*b k"]) -> Float[Tensor, "n k"]:
        """The rows of the valid tokens, leading axes flattened; at least float32."""
        flat = tensor.reshape(-1, tensor.shape[-1])
        if self.valid is not None:
            flat = flat.index_select(0, self._valid_places)
        return at_least_float32(flat)


class Captured:
    """The calls seen so far. Filled while `capture` is open; emptied when it closes."""

    def __init__(
        self,
        names: dict[CallPoint, str],
        layers: dict[str, SparseProtoLinear],
        storage: Storage,
        on_gradient: Callable[[CapturedCall], None] | None,
        masked: bool,
    ) -> None:
        self._masked = masked
        self._names, self._layers, self._storage, self._on_gradient = names, layers, storage, on_gradient
        self._calls: list[CapturedCall] = []
        self._index: Counter[str] = Counter()
        self._handles: list[Any] = []
        self._valid: Tensor | None = None
        self._masks = Masks()

    def use_valid(self, valid: Bool[Tensor, " *b"] | None) -> None:
        """Says which tokens of the forward passes from here on count (False for padding). None: all."""
        self._masks.next()
        self._valid = valid

    @property
    def layers(self) -> dict[str, SparseProtoLinear]:
        """The layers that are watched, by name."""
        return self._layers

    def calls(self) -> list[CapturedCall]:
        """Every call with its gradient, after the backward pass, checked.

        Raises:
            CaptureError: a call got no gradient, or a captured tensor was modified in place; names it.
        """
        complete: list[CapturedCall] = []
        missing: list[CapturedCall] = []
        for call in self._calls:
            call.check_unchanged()
            (complete if call.arrived else missing).append(call)
        # Non-reentrant checkpointing runs a forward a second time, during backward, only to refill the saved tensors of
        # the first: that second call rightly gets no gradient, as long as there is a first one that did.
        spare = Counter(call.module_name for call in complete if not call.during_backward)
        for call in missing:
            spare[call.module_name] -= 1
            if not call.during_backward or spare[call.module_name] < 0:
                raise CaptureError(
                    f"{call.title} got no gradient: its output does not reach the loss, or backward() has not run"
                )
        return complete

    def _record(self, point: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not torch.is_grad_enabled():
            return  # no gradient can come; reentrant checkpointing runs the forward again with gradients
        assert isinstance(point, CallPoint)
        call: SparseProtoCall = args[0]
        module_name = self._names[point]
        keep = (lambda t: t.detach().clone()) if self._storage == "clone" else (lambda t: t.detach())
        gate = call.routing.gate
        routing = call.routing._replace(match=keep(call.routing.match), gate=None if gate is None else keep(gate))
        during_backward = torch._C._current_graph_task_id() != -1
        unknown = during_backward and self._masks.pending > 1
        record = CapturedCall(
            module_name=module_name,
            module=self._layers[module_name],
            call_index=self._index[module_name],
            x=keep(call.x),
            masked_output=keep(call.masked_output),
            routing=routing,
            valid=None if unknown else self._matching_valid(call.x, module_name),
            during_backward=during_backward,
            mask_unknown=unknown,
        )
        if self._masked:
            record.computation_output = keep(call.computation_output)
        if self._storage == "reference":
            held = {name: getattr(record, name) for name in ("x", "masked_output", "computation_output")}
            for name, tensor in (held | {"match": routing.match, "gate": routing.gate}).items():
                if isinstance(tensor, Tensor):
                    record.watch_version(name, tensor)
        self._index[module_name] += 1
        self._calls.append(record)
        if self._masked and isinstance(output, Tensor) and output.requires_grad:
            self._watch_masked(record, output)
        if call.computation_output.requires_grad:
            self._watch(record, call.computation_output)

    def _matching_valid(self, x: Tensor, name: str) -> Tensor | None:
        if self._valid is not None and self._valid.shape != x.shape[:-1]:
            raise CaptureError(
                f"the mask of valid tokens has shape {tuple(self._valid.shape)}, but {name!r} was called with tokens "
                f"of shape {tuple(x.shape[:-1])}"
            )
        return self._valid

    def _watch_masked(self, record: CapturedCall, masked_output: Tensor) -> None:
        def on_gradient(gradient: Tensor | None) -> None:
            if gradient is None:
                raise CaptureError(f"{record.title} was compiled; {WITHOUT_COMPILER}")
            before = record.masked_gradient
            gradient = gradient.detach().clone() if self._storage == "clone" else gradient.detach()
            record.masked_gradient = gradient if before is None else before + gradient
            if self._storage == "reference" and before is None:
                record.watch_version("masked_gradient", gradient)

        self._handles.append(masked_output.register_hook(on_gradient))

    def _watch(self, record: CapturedCall, computation_output: Tensor) -> None:
        # detach() shares storage and version counter, and keeps no graph alive.
        output: Tensor | None = computation_output.detach()
        version = computation_output._version

        def on_gradient(gradient: Tensor | None) -> None:
            nonlocal output
            if output is not None and output._version != version:
                raise CaptureError(f"computation_output of {record.title} was modified in place after it was captured")
            output = None  # its memory is autograd's to free
            if gradient is None:  # inside a graph of torch.compile, where hooks of tensors are called for nothing
                raise CaptureError(f"{record.title} was compiled; {WITHOUT_COMPILER}")
            if record.mask_unknown:
                raise CaptureError(f"{record.title} {UNKNOWN_MASK}")
            self._masks.arrived()
            gradient = gradient.detach()
            if record.grad_output is not None:
                record.grad_output = record.grad_output + gradient
            elif self._storage == "clone":
                record.grad_output = gradient.clone()
            else:
                record.grad_output = gradient
                record.watch_version("grad_output", gradient)
            if self._on_gradient is not None:
                if record.arrived:
                    raise CaptureError(f"{record.title} got a second gradient after its first had been made use of")
                record.check_unchanged()
                self._on_gradient(record)
            record.arrived = True

        self._handles.append(computation_output.register_hook(on_gradient))

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        for call in self._calls:
            call.let_go(*HELD, "valid")
        self._handles.clear()
        self._calls.clear()
        self._valid = None


@contextmanager
def capture(
    model: nn.Module,
    *,
    valid: Bool[Tensor, " *b"] | None = None,
    storage: Storage = "reference",
    on_gradient: Callable[[CapturedCall], None] | None = None,
    masked: bool = False,
) -> Iterator[Captured]:
    """Watches every SparseProtoLinear of `model` (ADR-0004, steps 1 to 3).

    Run the forward passes and the backward inside, and read `calls()` inside: on leaving, whatever happened, the hooks
    are removed and every captured tensor is let go.

    Args:
        model: any module.
        valid: which tokens count; see `Captured.use_valid`.
        storage: "reference" keeps no copy and raises where a tensor is modified in place; "clone" copies every tensor
            as the ADR's IMP-002 asks, at the cost of the memory.
        on_gradient: called with each call as its gradient arrives, during the backward pass; it may `let_go` of what
            nothing later needs. A second gradient for the same call is then an error.
        masked: also capture `computation_output` and `masked_gradient`.
    """
    layers = sparse_layers(model)
    names = {layer.call_point: name for name, layer in layers.items()}
    captured = Captured(names, layers, storage, on_gradient, masked)
    captured.use_valid(valid)
    handles = [layer.call_point.register_forward_hook(captured._record) for layer in layers.values()]
    handles += [layer.register_forward_pre_hook(_with_gradient) for layer in layers.values()]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
        captured._release()


def _with_gradient(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Has a gradient come to the output of a frozen layer on an input that has none: its router may still learn."""
    assert isinstance(layer, SparseProtoLinear)
    frozen = not (layer.mu_weight.requires_grad or layer.mu_bias.requires_grad)
    if frozen and torch.is_grad_enabled() and not args[0].requires_grad:
        return (args[0].detach().requires_grad_(True), *args[1:])
    return None
