"""Maximum-absolute scaling: the one non-linearity that routing, Goodness and the meta-loss share."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

EPS = 1e-9


def mas(v: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
    """relu(v / (max_j |v_j| + EPS)), the maximum over the last axis; in [0, 1].

    Where several entries tie for the maximum, its gradient is shared among them evenly, as torch.amax does. That
    gradient can be differentiated in its turn.
    """
    # A compiler derives as good a backward from the formula, and does not follow one custom function into another.
    plain = torch.compiler.is_compiling() or not torch.is_grad_enabled()
    return _scaled(v) if plain else _Mas.apply(v)


def _scaled(v: Tensor) -> Tensor:
    return torch.relu(v / (v.abs().amax(dim=-1, keepdim=True) + EPS))


def normalise(v: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
    """v / (sum_j v_j + EPS): a distribution over experts from non-negative scores; all zeros stays all zeros."""
    return v / (v.sum(dim=-1, keepdim=True) + EPS)


def mas_backward(
    gradient: Float[Tensor, "*b o"], v: Float[Tensor, "*b o"], y: Float[Tensor, "*b o"]
) -> Float[Tensor, "*b o"]:
    """dL/dv from gradient = dL/dy, where y = mas(v). With M = max_j |v_j| + EPS,

        dL/dv_i = ([v_i > 0] gradient_i - sign(v_i) [|v_i| = max] / ties * sum_j gradient_j y_j) / M

    Written as arithmetic, not as selections: on a CPU a comparison or a `where` costs several multiplications.
    """
    size = v.abs()
    maximum = size.amax(dim=-1, keepdim=True)
    at_maximum = (size - maximum).sign_().add_(1)  # 1 where |v| is the maximum, else 0
    pull = (gradient * y).sum(dim=-1, keepdim=True) / at_maximum.sum(dim=-1, keepdim=True)
    through_maximum = at_maximum.mul_(pull).mul_(v.sign())
    return torch.ops.aten.threshold_backward(gradient, v, 0).sub_(through_maximum).div_(maximum + EPS)


class _Mas(torch.autograd.Function):
    """`mas` with its gradient in closed form: autograd's own takes some three times the passes over memory."""

    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return _scaled(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return mas_backward(grads[0], *ctx.saved_tensors)
