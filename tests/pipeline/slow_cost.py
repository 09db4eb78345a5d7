"""An arm that takes its time, so that something can happen to a tiny run in the middle of it."""

import time

from torch import Tensor

from tiny_onn.learning_cost import TokenCost


def _slowly(grad_output: Tensor, x: Tensor, weight: object) -> Tensor:
    time.sleep(0.04)
    return grad_output.abs() * x.norm(dim=-1, keepdim=True)


SLOW = TokenCost(_slowly)
