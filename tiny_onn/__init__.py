"""Sparse routing trained by Goodness, a meta-learning signal taken from per-token gradients. Needs torch alone.

The names in `__all__` are the public interface; everything else may change between versions. They are imported when
they are first used, so that `import tiny_onn.arms`, the facts about arms, takes no torch.

`arm`, `capture`, `gradient_norms`, `learning_cost` and `sparsify` are functions here. What else their modules hold is
reached by `from tiny_onn.arm import TASK_ONLY`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiny_onn.arm import Arm, Goodness, Teacher, arm, configure
    from tiny_onn.capture import capture
    from tiny_onn.distributed import distribute
    from tiny_onn.dynamics import LearningDynamics
    from tiny_onn.gradient_norms import gradient_norms
    from tiny_onn.layers import SparseProtoLinear, computation_parameters, router_parameters
    from tiny_onn.learning_cost import LayerCost, TokenCost, learning_cost, per_token_gradients
    from tiny_onn.model import GridTransformer
    from tiny_onn.sparsify import sparsify

__all__ = [
    "Arm",
    "Goodness",
    "GridTransformer",
    "LayerCost",
    "LearningDynamics",
    "SparseProtoLinear",
    "Teacher",
    "TokenCost",
    "arm",
    "capture",
    "computation_parameters",
    "configure",
    "distribute",
    "gradient_norms",
    "learning_cost",
    "per_token_gradients",
    "router_parameters",
    "sparsify",
]

_MODULES = {
    "Arm": "arm",
    "Goodness": "arm",
    "GridTransformer": "model",
    "LayerCost": "learning_cost",
    "LearningDynamics": "dynamics",
    "SparseProtoLinear": "layers",
    "Teacher": "arm",
    "TokenCost": "learning_cost",
    "arm": "arm",
    "capture": "capture",
    "computation_parameters": "layers",
    "configure": "arm",
    "distribute": "distributed",
    "gradient_norms": "gradient_norms",
    "learning_cost": "learning_cost",
    "per_token_gradients": "learning_cost",
    "router_parameters": "layers",
    "sparsify": "sparsify",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Binds a public function where the import system would bind the module of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _MODULES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
