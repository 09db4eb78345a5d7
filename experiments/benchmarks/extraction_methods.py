"""The per-token learning costs of one linear layer, extracted in every way that is compared.

The layer has a weight [H, H] and no bias, and tokens are the samples: x [S, H] goes in, g [S, H] is the gradient at its
output, and wanted is C[n,o] = ||g[n,o] x[n,:]||_2, [S, H].

From x and g alone, as a layer that has captured them has them:

    factored           |g| ||x||, exactly, without the [S, H, H] tensor
    einsum_chunked     the tensor, 64 tokens at a time, and its norms
    einsum             the whole tensor, and its norms
    vmap               torch.func.vmap of the vector-Jacobian product, 64 tokens at a time
    function           a custom autograd.Function that hands the costs (einsum_chunked) out of its backward

By hooks, during the forward and backward pass of the layer:

    forward_backward   the pass alone: what the following ones do besides
    factored_in_hook   `factored` in a hook on the layer's output
    opacus_per_sample  Opacus' per-sample gradients, and their norms
    opacus_ghost       Opacus' ghost norms: one a token, of the whole weight's gradient
    backpack_grad      BackPACK's BatchGrad, and its norms
    backpack_l2        BackPACK's BatchL2Grad: one a token, of the whole weight's gradient
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tiny_onn.learning_cost import per_token, per_token_einsum, per_token_function, per_token_vmap

CHUNK = 64  # tokens at a time, where not all


@dataclass(frozen=True)
class LayerSize:
    """Of a layer and its input: `seq` tokens."""

    hidden: int
    seq: int
    device: str = "cpu"


@dataclass(frozen=True)
class Method:
    """A way to the costs.

    `prepare(x, g)` returns a function that extracts them anew at each call. `gives` says what: one value a token and
    row [S, H], one a token [S] (the root of the sum over rows of the squares of the former), or nothing.
    It builds whole gradients `at_a_time` tokens at once, of all tokens if None, and holds so many `copies` of them.
    """

    prepare: Callable[[Tensor, Tensor], Callable[[], Tensor | None]]
    copies: int = 0
    at_a_time: int | None = None
    gives: Literal["rows", "token", "nothing"] = "rows"
    through_backward: bool = False
    package: str | None = None

    def problem(self) -> str | None:
        """Why it cannot run here, if it cannot."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return "not installed: pip install .[bench]"
        return None

    def bytes_needed(self, size: LayerSize) -> int:
        """Of the gradients that it builds: the part of its memory that can be too much."""
        tokens = min(size.seq, self.at_a_time or size.seq)
        return 4 * self.copies * tokens * size.hidden**2


class Extraction:
    """A method at work on a layer's x and g: to be called again and again, returns what the method gives."""

    def __init__(self, name: str, size: LayerSize) -> None:
        self.method = METHODS[name]
        device = torch.device(size.device)
        torch.manual_seed(0)
        self.x = torch.randn(size.seq, size.hidden).to(device)
        self.g = torch.randn(size.seq, size.hidden).to(device)
        self._extract = self.method.prepare(self.x, self.g)
        weights = size.hidden**2 if self.method.through_backward else 0
        self.state_bytes = 4 * (2 * size.seq * size.hidden + weights)

    def __call__(self) -> Tensor | None:
        """One extraction."""
        return self._extract()


def build(name: str, size: LayerSize) -> Callable[[], object]:
    """An extraction by its method's name."""
    return Extraction(name, size)


def norms(gradients: Tensor) -> Tensor:
    """Of every row of every token's whole gradient: [S, H, H] -> [S, H]."""
    return torch.linalg.vector_norm(gradients, dim=-1)


def _directly(cost: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Callable[[], Tensor]]:
    return lambda x, g: lambda: cost(g, x)


def _whole_einsum(g: Tensor, x: Tensor) -> Tensor:
    return norms(torch.einsum("no,ni->noi", g, x))


def _layer(x: Tensor) -> nn.Linear:
    return nn.Linear(x.shape[-1], x.shape[-1], bias=False, device=x.device)


def _backward(layer: nn.Module, x: Tensor, g: Tensor) -> None:
    """Forward and backward of a layer inside a network: the input's gradient is wanted too. Keeps no gradient."""
    token_inputs = x.detach().requires_grad_()
    layer(token_inputs).backward(g)
    for parameter in layer.parameters():
        parameter.grad = None


def _forward_backward(x: Tensor, g: Tensor) -> Callable[[], None]:
    layer = _layer(x)
    return lambda: _backward(layer, x, g)


def _factored_in_hook(x: Tensor, g: Tensor) -> Callable[[], Tensor]:
    layer = _layer(x)
    captured: list[Tensor] = []

    def when_called(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        token_inputs = inputs[0].detach()
        output.register_hook(lambda grad_output: captured.append(per_token(grad_output, token_inputs)))

    layer.register_forward_hook(when_called)

    def extract() -> Tensor:
        _backward(layer, x, g)
        return captured.pop()

    return extract


def _opacus_per_sample(x: Tensor, g: Tensor) -> Callable[[], Tensor]:
    from opacus.grad_sample import GradSampleModule

    module = GradSampleModule(_layer(x), loss_reduction="sum")
    (weight,) = module.parameters()

    def extract() -> Tensor:
        _backward(module, x, g)
        costs = norms(weight.grad_sample)
        weight.grad_sample = None
        return costs

    return extract


def _opacus_ghost(x: Tensor, g: Tensor) -> Callable[[], Tensor]:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    module = GradSampleModuleFastGradientClipping(_layer(x), loss_reduction="sum", use_ghost_clipping=True)

    def extract() -> Tensor:
        _backward(module, x, g)
        return module.get_norm_sample()

    return extract


def _backpack_grad(x: Tensor, g: Tensor) -> Callable[[], Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    layer = extend(_layer(x))

    def extract() -> Tensor:
        with backpack(BatchGrad()):
            _backward(layer, x, g)
        costs = norms(layer.weight.grad_batch)
        del layer.weight.grad_batch
        return costs

    return extract


def _backpack_l2(x: Tensor, g: Tensor) -> Callable[[], Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    layer = extend(_layer(x))

    def extract() -> Tensor:
        with backpack(BatchL2Grad()):
            _backward(layer, x, g)
        return layer.weight.batch_l2.sqrt()

    return extract


METHODS = {
    "factored": Method(_directly(per_token)),
    "einsum_chunked": Method(_directly(lambda g, x: per_token_einsum(g, x, chunk=CHUNK)), 1, CHUNK),
    "einsum": Method(_directly(_whole_einsum), 1),
    "vmap": Method(_directly(lambda g, x: per_token_vmap(g, x, chunk=CHUNK)), 1, CHUNK),
    "function": Method(_directly(per_token_function), 1, CHUNK),
    "forward_backward": Method(_forward_backward, gives="nothing", through_backward=True),
    "factored_in_hook": Method(_factored_in_hook, through_backward=True),
    # Opacus copies the gradients into a buffer of its own, which is there for batches in several parts
    "opacus_per_sample": Method(_opacus_per_sample, 2, through_backward=True, package="opacus"),
    "opacus_ghost": Method(_opacus_ghost, gives="token", through_backward=True, package="opacus"),
    "backpack_grad": Method(_backpack_grad, 1, through_backward=True, package="backpack"),
    "backpack_l2": Method(_backpack_l2, gives="token", through_backward=True, package="backpack"),
}
