"""What `capture` records of one call of a linear layer, and how a record is checked."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tiny_onn.layers import SparseProtoLinear
from tiny_onn.learning_cost import PerTokenGradients
from tiny_onn.linear_layers import is_transposed
from tiny_onn.routing import Routing, at_least_float32
from tiny_onn.torch_private import version_of

IN_PLACE = '; use an out-of-place operation, as ReLU(inplace=False) is, or capture(..., storage="clone")'


class CaptureError(RuntimeError):
    """A captured call cannot be trusted. Names the module and the call."""


@dataclass(eq=False, kw_only=True)
class LinearCall:
    """One call of one linear layer, y = x W^T + b; all tensors detached.

    `grad_output` is dL/dy, summed over all backward passes that reached the call. `valid` marks the tokens that count;
    None is all of them. `pass_index` counts the calls of the whole model, from 0; None where it cannot be told.
    """

    module_name: str
    module: nn.Module
    call_index: int
    x: Float[Tensor, "*b i"]
    valid: Bool[Tensor, " *b"] | None
    during_backward: bool
    pass_index: int | None = None
    mask_unknown: bool = False
    grad_output: Float[Tensor, "*b o"] | None = None
    arrived: bool = False
    _versions: list[tuple[str, Tensor, int]] = field(default_factory=list)
    _output: tuple[Tensor, int] | None = None

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
            if version_of(tensor) != version:
                raise CaptureError(
                    f"{name} of {self.title} was modified in place after it was captured, so its values are lost; "
                    'use an out-of-place operation, or capture(..., storage="clone")'
                )

    def watch_version(self, name: str, tensor: Tensor) -> None:
        """Has `check_unchanged` look at a tensor that is held by reference."""
        self._versions.append((name, tensor, version_of(tensor)))

    def watch_output(self, output: Tensor | None) -> None:
        """Has `check_output` look at y, until its gradient is there."""
        self._output = None if output is None else (output, version_of(output))

    def check_output(self) -> None:
        """Raises CaptureError where y was modified in place: its hook may be lost with its gradient, or see another."""
        if self._output is not None and version_of(self._output[0]) != self._output[1]:
            mend = "" if isinstance(self, CapturedCall) else IN_PLACE
            raise CaptureError(f"computation_output of {self.title} was modified in place after it was captured{mend}")

    def let_go(self, *names: str) -> None:
        """Drops fields that nothing later needs, so that their memory is free before the backward pass ends."""
        for name in names:
            setattr(self, name, torch.empty(0) if name == "x" else None)
        self._versions = [entry for entry in self._versions if entry[0] not in names]

    def select(self, tensor: Float[Tensor, "*b k"]) -> Float[Tensor, "n k"]:
        """The rows of the valid tokens, leading axes flattened; at least float32."""
        flat = tensor.reshape(-1, tensor.shape[-1])
        if self.valid is not None:
            flat = flat.index_select(0, self._valid_places)
        return at_least_float32(flat)

    def gradients(self) -> PerTokenGradients:
        """dW[n,o,i] = dL/dW of each valid token, as its two factors, in float32 at least.

        Raises:
            CaptureError: the call has no gradient yet, or what was captured was modified in place.
        """
        if self.grad_output is None:
            raise CaptureError(f"{self.title} has no gradient: call backward() first, inside of capture()")
        self.check_unchanged()
        dtype = torch.promote_types(self.grad_output.dtype, self.x.dtype)
        return PerTokenGradients(self.select(self.grad_output.to(dtype)), self.select(self.x.to(dtype)))

    def weight_gradient(self) -> Tensor:
        """The valid tokens' gradients summed, in the layout of the module's weight: this call's share of its `.grad`.

        [o, i], or [i, o] of a Hugging Face Conv1D.
        """
        summed = self.gradients().sum()
        return summed.T if is_transposed(self.module) else summed


@dataclass(eq=False, kw_only=True)
class CapturedCall(LinearCall):
    """One call of one SparseProtoLinear; all tensors detached.

    `grad_output` is dL/d(computation_output). `computation_output` and `masked_gradient`, dL/d(masked_output), are
    there where `capture(..., masked=True)` asks for them.
    """

    module: SparseProtoLinear
    masked_output: Float[Tensor, "*b o"]
    routing: Routing
    computation_output: Float[Tensor, "*b o"] | None = None
    masked_gradient: Float[Tensor, "*b o"] | None = None

    def let_go(self, *names: str) -> None:
        """Drops fields that nothing later needs, so that their memory is free before the backward pass ends."""
        super().let_go(*(name for name in names if name not in ("routing", "masked_output")))
        if "routing" in names:
            self.routing = self.routing._replace(match=torch.empty(0), gate=None, chosen=None)
        if "masked_output" in names:
            self.masked_output = torch.empty(0)
        gone = {*names, *(("match", "gate") if "routing" in names else ())}
        self._versions = [entry for entry in self._versions if entry[0] not in gone]
