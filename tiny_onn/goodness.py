"""Goodness: did an expert contribute, did it matter, and what did learning cost?"""

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.mas import EPS, mas

JUDGED_GOOD = 0.1  # experts whose Goodness is above this part of the best expert's, mas(Goodness), are judged good


def goodness(
    contribution: Float[Tensor, "*b o"], relevance: Float[Tensor, "*b o"], cost: Float[Tensor, "*b o"]
) -> Float[Tensor, "*b o"]:
    """mas(mas(contribution) mas(relevance)) / (mas(cost) + EPS), with no gradient; all three are non-negative.

    With a leading axis of tokens every token has a Goodness of its own; without, all tokens share one. Free of the
    scale of each argument, token by token, as long as its maximum is far above EPS.
    """
    with torch.no_grad():
        return mas(mas(contribution) * mas(relevance)) / (mas(cost) + EPS)
