"""Spearman's rank correlation of many rows at once."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

try:
    import numpy as np
except ImportError:  # torch works without it; so do we, with torch's own sort, which takes far longer
    np = None  # type: ignore[assignment]

_LARGEST = 0x7FFFFFFF
_AT_ONCE = 2**15  # numbers that are ranked at once: what is made of them on the way stays in a core's cache


def spearman(
    a: Float[Tensor, "*m n o"], b: Float[Tensor, "*k n o"], mask: Bool[Tensor, "n o"] | Float[Tensor, "n o"]
) -> Float[Tensor, "*l n"]:
    """Spearman's rank correlation of each row of a and b over the entries in `mask`, ties sharing their mean rank.

    Leading axes are broadcast. NaN where fewer than three entries are in the mask, or where one of the two is constant.
    """
    inside = (mask > 0).to(a.dtype)
    ranks_a, ranks_b = _centred_ranks(a, inside), _centred_ranks(b, inside)
    norms = torch.linalg.vector_norm(ranks_a, dim=-1) * torch.linalg.vector_norm(ranks_b, dim=-1)
    coefficient = (ranks_a * ranks_b).sum(-1) / norms
    return torch.where((inside.sum(-1) >= 3) & (norms > 0), coefficient, torch.nan)


def _centred_ranks(v: Tensor, mask: Tensor) -> Tensor:
    by_bits = np is not None and v.dtype == torch.float32 and v.device.type == "cpu"
    ranks = ranks_by_bits(v, mask) if by_bits else ranks_by_search(v, mask)
    return (ranks - (ranks * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)) * mask


def ranks_by_search(v: Float[Tensor, "*m n o"], mask: Float[Tensor, "n o"]) -> Float[Tensor, "*m n o"]:
    """The rank of each entry among those in the mask of its row, less a half; ties share the mean. Any device."""
    v = v.contiguous()
    ordered = torch.where(mask > 0, v, torch.inf).sort(dim=-1).values
    below = torch.searchsorted(ordered, v)
    up_to = torch.searchsorted(ordered, v, right=True)  # those that tie included
    return (below + up_to).to(mask.dtype) / 2


def ranks_by_bits(v: Float[Tensor, "*m n o"], mask: Float[Tensor, "n o"]) -> Float[Tensor, "*m n o"]:
    """`ranks_by_search` of the entries in the mask, those of others being whatever they are; of float32 on a CPU.

    numpy sorts whole numbers in vector registers, which takes a fiftieth of the time. Each value's bits, in an order
    that is that of the values, go with its place; of two sorts one has ties in ascending order of their places, and the
    other in descending: the mean of an entry's two positions is the mean rank of its ties.
    """
    rows = v.reshape(-1, v.shape[-1])
    inside = (mask > 0).int().neg_().expand_as(v).reshape(rows.shape)  # all bits set, or none
    step = max(1, _AT_ONCE // max(1, v.shape[-1]))
    parts = [_ranks_of_rows(*part) for part in zip(rows.split(step), inside.split(step), strict=True)]
    return torch.cat(parts).view(v.shape)


def _ranks_of_rows(v: Tensor, inside: Tensor) -> Tensor:
    places = torch.arange(v.shape[-1])
    bits = (v + 0.0).view(torch.int32)  # 0 in the place of -0, which it equals
    order = bits.bitwise_xor((bits >> 31).bitwise_and_(_LARGEST)).bitwise_and_(inside)
    order = order.bitwise_or_(inside.bitwise_not().bitwise_and_(_LARGEST)).long().bitwise_left_shift_(32)
    positions = places.to(v.dtype).expand_as(v)
    ascending = torch.empty_like(v).scatter_(-1, _sorted_places(order | places), positions)
    descending = torch.empty_like(v).scatter_(-1, _sorted_places(order.bitwise_or_(places.flip(0))), positions)
    return ascending.add_(descending.flip(-1)).add_(1).div_(2)


def _sorted_places(keys: Tensor) -> Tensor:
    keys.numpy().sort(axis=-1)
    return keys.bitwise_and_(0xFFFFFFFF)
