"""Maximum-absolute scaling: the one non-linearity that routing, Goodness and the meta-loss share."""

import torch
from jaxtyping import Float
from torch import Tensor

EPS = 1e-9


def mas(v: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
    """relu(v / (max_j |v_j| + EPS)), the maximum over the last axis; in [0, 1), differentiable in v.

    Where several entries tie for the maximum, its gradient is shared among them evenly, as torch.amax does.
    """
    return torch.relu(v / (v.abs().amax(dim=-1, keepdim=True) + EPS))


def normalise(v: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
    """v / (sum_j v_j + EPS): a distribution over experts from non-negative scores; all zeros stays all zeros."""
    return v / (v.sum(dim=-1, keepdim=True) + EPS)
