"""Norms of the weight gradients of captured calls: of each token, of each sequence, of a whole layer.

A token's gradient is g x^T, so its Frobenius norm is ||g|| ||x||, and inner products of two tokens' gradients are
products of inner products. Neither needs the gradients themselves.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.captured_call import CaptureError, LinearCall

Per = Literal["token", "sequence", "layer"]


def gradient_norms(
    calls: Sequence[LinearCall], per: Per = "token", *, bias: bool = False, batch_axis: int = 0
) -> Float[Tensor, "*n"]:
    """Frobenius norms of dL/dW of one layer; tokens that do not count are 0. In float32 at least.

        token      [*b], of x's leading shape: ||sum_c g_c x_c^T|| over the calls c
        sequence   [n], n = the size of `batch_axis`: the norm of the sum over the tokens of each sequence
        layer      []: the norm of the sum over all tokens

    Args:
        calls: of one layer and on the same tokens, as a layer that is used twice in one forward pass has them; their
            gradients are summed. One call is the usual case.
        bias: of the gradient of weight and bias together.
        batch_axis: the axis of x that counts sequences; 1 where a model is not batch-first.

    Raises:
        CaptureError: the calls are of several layers, of several shapes, or have no gradient.
        ValueError: there are no calls, or no such `per`.
    """
    if per not in get_args(Per):
        raise ValueError(f"per: found {per!r}; expected one of {', '.join(get_args(Per))}")
    if not calls:
        raise ValueError("calls: found none; expected the calls of one layer")
    shapes = {tuple(call.x.shape[:-1]) for call in calls}
    if len({call.module_name for call in calls}) > 1 or (per != "layer" and len(shapes) > 1):
        raise CaptureError(
            f"{', '.join(call.title for call in calls)}: expected calls of one layer on the same tokens, found tokens "
            f"of shape {', '.join(map(str, sorted(shapes)))}"
        )
    factors = [_factors(call, bias) for call in calls]
    if per == "layer":
        whole = sum(_flat(g).T @ _flat(x) for g, x in factors)
        assert isinstance(whole, Tensor)
        return torch.linalg.vector_norm(whole)
    if per == "token":
        if len(factors) == 1:
            ((g, x),) = factors
            return torch.linalg.vector_norm(g, dim=-1) * torch.linalg.vector_norm(x, dim=-1)
        # [*b, calls, o] and [*b, calls, i]: a token's calls are to it what its tokens are to a sequence
        return _norms_of_sums(*(torch.stack(each, dim=-2) for each in zip(*factors, strict=True)))
    by_sequence = [tuple(_sequences(each, batch_axis) for each in pair) for pair in factors]
    return _norms_of_sums(*(torch.cat(each, dim=1) for each in zip(*by_sequence, strict=True)))


def norms_of_calls(calls: Sequence[LinearCall], per: Per, *, bias: bool, batch_axis: int) -> Tensor:
    """`gradient_norms` of one layer over several passes: summed within each, one after the other along the batch axis.

    Raises:
        CaptureError: which calls are of one pass is not known.
    """
    if per == "layer" or len(calls) == 1:
        return gradient_norms(calls, per, bias=bias, batch_axis=batch_axis)
    passes: dict[int, list[LinearCall]] = {}
    for call in calls:
        if call.pass_index is None:
            raise CaptureError(
                f"{call.title}: cannot tell which calls of this layer had the same tokens; call the model that "
                "was passed to capture() itself, with checkpoint(..., use_reentrant=False), or use gradient_norms on "
                "calls that you choose"
            )
        passes.setdefault(call.pass_index, []).append(call)
    norms = [gradient_norms(passes[each], per, bias=bias, batch_axis=batch_axis) for each in sorted(passes)]
    return torch.cat(norms, dim=batch_axis if per == "token" else 0)


def _factors(call: LinearCall, bias: bool) -> tuple[Tensor, Tensor]:
    """g and x, of at least float32, with g = 0 where a token does not count; x with a 1 for the bias."""
    if call.grad_output is None:
        raise CaptureError(f"{call.title} has no gradient: call backward() first, inside of capture()")
    call.check_unchanged()
    dtype = torch.promote_types(torch.promote_types(call.grad_output.dtype, call.x.dtype), torch.float32)
    g, x = call.grad_output.to(dtype), call.x.to(dtype)
    if call.valid is not None:
        g = torch.where(call.valid[..., None], g, torch.zeros((), dtype=dtype, device=g.device))
        x = torch.where(call.valid[..., None], x, torch.zeros((), dtype=dtype, device=g.device))
    return g, torch.cat([x, torch.ones_like(x[..., :1])], dim=-1) if bias else x


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _sequences(tensor: Tensor, batch_axis: int) -> Tensor:
    """[n, tokens of a sequence, k]."""
    if not 0 <= batch_axis < tensor.ndim - 1:
        raise ValueError(f"batch_axis: found {batch_axis}; x has the axes {tuple(tensor.shape[:-1])} of tokens")
    moved = tensor.movedim(batch_axis, 0)
    return moved.reshape(len(moved), -1, moved.shape[-1])


def _norms_of_sums(g: Float[Tensor, "*n t o"], x: Float[Tensor, "*n t i"]) -> Float[Tensor, " *n"]:
    """||sum_t g_t x_t^T||, by whichever of two ways holds fewer numbers: the sum, or the t x t inner products."""
    tokens, size = g.shape[-2], g.shape[-1] * x.shape[-1]
    if 2 * tokens * tokens < size:
        squares = ((g @ g.mT) * (x @ x.mT)).sum(dim=(-2, -1))
        return squares.clamp(min=0).sqrt()
    return torch.linalg.vector_norm(g.mT @ x, dim=(-2, -1))
