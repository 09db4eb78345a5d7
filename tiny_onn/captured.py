"""The records of `capture`: they are begun by a forward hook, and completed by the hook of the call's own output.

Pairing is by call. Tensor hooks fire in backward order, so a gradient is never matched to an input by its place in a
list: each call's own hook holds the record that it fills.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from tiny_onn.captured_call import CapturedCall, CaptureError, LinearCall
from tiny_onn.gradient_norms import Per, norms_of_calls
from tiny_onn.layers import SparseProtoCall, SparseProtoLinear
from tiny_onn.linear_layers import weight_of
from tiny_onn.torch_private import in_backward_pass, version_of

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


C = TypeVar("C", bound=LinearCall)


class Captured(Generic[C]):
    """The calls seen so far. Filled while `capture` is open; emptied when it closes."""

    def __init__(
        self,
        layers: dict[str, nn.Module],
        storage: Storage,
        on_gradient: Callable[[C], None] | None,
        masked: bool,
    ) -> None:
        self._masked = masked
        self._layers, self._storage, self._on_gradient = layers, storage, on_gradient
        self._calls: list[C] = []
        self._index: Counter[str] = Counter()
        self._handles: list[Any] = []
        self._valid: Tensor | None = None
        self._masks, self._passes, self._pass_index = Masks(), Masks(), -1
        self._passes.next()
        self._uncalled: dict[str, tuple[int | None, int]] = {}

    def use_valid(self, valid: Bool[Tensor, " *b"] | None) -> None:
        """Says which tokens of the forward passes from here on count (False for padding). None: all."""
        self._masks.next()
        self._valid = valid

    @property
    def layers(self) -> dict[str, Any]:
        """The layers that are watched, by name."""
        return self._layers

    def calls(self) -> list[C]:
        """Every call with its gradient, after the backward pass, checked.

        Raises:
            CaptureError: a call got no gradient, a captured tensor was modified in place, or the weight of a layer got
                a gradient without a call; names it.
        """
        complete: list[C] = []
        missing: list[C] = []
        for call in self._calls:
            call.check_unchanged()
            (complete if call.arrived else missing).append(call)
        # Non-reentrant checkpointing runs a forward a second time, during backward, only to refill the saved tensors of
        # the first: that second call rightly gets no gradient, as long as there is a first one that did.
        spare = Counter(call.module_name for call in complete if not call.during_backward)
        for call in missing:
            call.check_output()
            spare[call.module_name] -= 1
            if not call.during_backward or spare[call.module_name] < 0:
                raise CaptureError(
                    f"{call.title} got no gradient: its output does not reach the loss, or backward() has not run"
                )
        for name, before in self._uncalled.items():
            if not self._index[name] and _gradient_state(self._layers[name]) != before:
                raise CaptureError(
                    f"the weight of {name!r} got a gradient, but no call of it was seen: the model uses the weight "
                    "without calling the layer, or torch.compile has compiled the call; leave the model uncompiled, "
                    "or select other layers"
                )
        return complete

    def norms(self, per: Per = "token", *, bias: bool = False, batch_axis: int = 0) -> dict[str, Tensor]:
        """The norms of the weight gradients of each layer, by name, over all calls; see `gradient_norms`.

        Calls of one layer in one call of `model` are of the same tokens: their gradients are summed before the norm is
        taken. Several calls of `model` (micro-batches) follow each other along the batch axis.

        Raises:
            CaptureError: as `calls`; or a layer was called several times, and which of its calls are of the same tokens
                cannot be told, because `model` itself was not called, or was by reentrant checkpointing.
        """
        by_name: dict[str, list[C]] = {}
        for call in self.calls():
            by_name.setdefault(call.module_name, []).append(call)
        return {
            name: norms_of_calls(by_name[name], per, bias=bias, batch_axis=batch_axis)
            for name in self._layers
            if name in by_name
        }

    def look_for_uses_without_calls(self, model: nn.Module) -> None:
        """Has `calls` look for layers whose weight, which is no other module's, gets a gradient without a call."""
        owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        for name, layer in self._layers.items():
            if owners[id(getattr(layer, "weight", None))] == 1:
                self._uncalled[name] = _gradient_state(layer)

    def begin_pass(self) -> None:
        """The model is called."""
        if torch.is_grad_enabled() and not in_backward_pass():
            self._passes.next()
            self._pass_index += 1

    def record_sparse(self, name: str, args: tuple[Any, ...], output: Any) -> None:
        """A call of a SparseProtoLinear, at its call point."""
        if not torch.is_grad_enabled():
            return  # no gradient can come; reentrant checkpointing runs the forward again with gradients
        call: SparseProtoCall = args[0]
        gate = call.routing.gate
        routing = call.routing._replace(
            match=self._keep(call.routing.match), gate=None if gate is None else self._keep(gate)
        )
        record = CapturedCall(
            **self._common(name, call.x), masked_output=self._keep(call.masked_output), routing=routing
        )
        if self._masked:
            record.computation_output = self._keep(call.computation_output)
        held = {each: getattr(record, each) for each in ("x", "masked_output", "computation_output")}
        self._add(cast(C, record), held | {"match": routing.match, "gate": routing.gate})
        if self._masked and isinstance(output, Tensor) and output.requires_grad:
            self._watch_masked(record, output)
        if call.computation_output.requires_grad:
            self._watch(cast(C, record), call.computation_output)

    def record_linear(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        """What the layer returns in the place of `output`: a copy where all is copied, for others may modify it."""
        if not torch.is_grad_enabled():
            return None
        if torch.compiler.is_compiling():
            raise CaptureError(f"{name!r} was compiled; {WITHOUT_COMPILER}")
        record = LinearCall(**self._common(name, args[0] if args else next(iter(kwargs.values()))))
        self._add(cast(C, record), {"x": record.x})
        if not output.requires_grad:
            return None
        self._watch(cast(C, record), output)
        return output.clone() if self._storage == "clone" else None

    def _keep(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if self._storage == "clone" else tensor.detach()

    def _common(self, name: str, x: Tensor) -> dict[str, Any]:
        """The fields of a record that say which call it is of."""
        during_backward = in_backward_pass()
        unknown = during_backward and self._masks.pending > 1
        in_no_pass = self._pass_index < 0 or (during_backward and self._passes.pending > 1)
        return {
            "module_name": name,
            "module": self._layers[name],
            "call_index": self._index[name],
            "x": self._keep(x),
            "valid": None if unknown else self._matching_valid(x, name),
            "during_backward": during_backward,
            "pass_index": None if in_no_pass else self._pass_index,
            "mask_unknown": unknown,
        }

    def _add(self, record: C, held: dict[str, Any]) -> None:
        if self._storage == "reference":
            for name, tensor in held.items():
                if isinstance(tensor, Tensor):
                    record.watch_version(name, tensor)
        self._index[record.module_name] += 1
        self._calls.append(record)

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

    def _watch(self, record: C, computation_output: Tensor) -> None:
        # detach() shares storage and version counter, and keeps no graph alive.
        record.watch_output(computation_output.detach())

        def on_gradient(gradient: Tensor | None) -> None:
            record.check_output()
            record.watch_output(None)  # its memory is autograd's to free
            if gradient is None:  # inside a graph of torch.compile, where hooks of tensors are called for nothing
                raise CaptureError(f"{record.title} was compiled; {WITHOUT_COMPILER}")
            if record.mask_unknown:
                raise CaptureError(f"{record.title} {UNKNOWN_MASK}")
            self._masks.arrived()
            self._passes.arrived()
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

    def release(self) -> None:
        """Removes the hooks of outputs and lets all captured tensors go."""
        for handle in self._handles:
            handle.remove()
        for call in self._calls:
            call.let_go(*HELD, "valid")
        self._handles.clear()
        self._calls.clear()
        self._valid = None


def _gradient_state(layer: nn.Module) -> tuple[int | None, int]:
    gradient = weight_of(layer).grad if isinstance(layer, SparseProtoLinear) else layer.weight.grad
    return (None, 0) if gradient is None else (id(gradient), version_of(cast(Tensor, gradient)))
