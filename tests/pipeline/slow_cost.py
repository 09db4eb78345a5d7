"""An arm that takes as long as a file says, so that something can happen to a tiny run in the middle of it."""

import os
import time
from pathlib import Path

from torch import Tensor

from tiny_onn.learning_cost import TokenCost

PACE = "TINY_ONN_TEST_PACE"  # names a file with the seconds that each call of the cost takes


def _slowly(grad_output: Tensor, x: Tensor, weight: object) -> Tensor:
    time.sleep(float(Path(os.environ[PACE]).read_text() or 0))
    return grad_output.abs() * x.norm(dim=-1, keepdim=True)


SLOW = TokenCost(_slowly)
