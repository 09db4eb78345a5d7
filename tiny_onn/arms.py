"""The arms by name, and how fine each one's learning cost is: known without torch, whose import takes seconds."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Granularity = Literal["token", "layer", "control"]

# "token": a cost for every token and expert; "layer": one for each expert, of all tokens summed; "control": no cost.
GRANULARITY: Mapping[str, Granularity] = MappingProxyType(
    {
        "per_token": "token",
        "aggregated": "layer",
        "metric_only": "layer",
        "none": "control",
        "relative": "token",
        "fisher": "token",
        "metric_max": "layer",
        "per_token_einsum": "token",
        "per_token_vmap": "token",
        "per_token_function": "token",
    }
)
