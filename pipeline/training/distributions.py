"""How learning cost and Goodness are distributed, by layer, over the course of a run: counts in fixed bins, as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import read_json, write_whole
from tiny_onn.histogram import COST_BINS, GOODNESS_BINS
from tiny_onn.routing_health import Health


@dataclass(frozen=True)
class Distribution:
    """Counts of (token, expert) pairs. `counts[0]` are at most 10^edges[0], `counts[-1]` above 10^edges[-1]."""

    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Distributions:
    """A step's distributions by layer. `goodness` is of mas(Goodness): as a part of the token's best expert's."""

    step: int
    cost: dict[int, Distribution]
    goodness: dict[int, Distribution]


def add_distributions(path: Path, step: int, layers: Mapping[int, list[Health]]) -> None:
    """Adds a step, its modules' counts summed by layer; later steps go, for training is not there yet.

    Without Goodness, as in the control arm, nothing is written.
    """
    counts = [
        {
            "layer": layer,
            "cost": np.sum([health.costs.cpu().numpy() for health in modules], axis=0).tolist(),
            "goodness": np.sum([health.goodness.cpu().numpy() for health in modules], axis=0).tolist(),
        }
        for layer, modules in sorted(layers.items())
    ]
    if not any(sum(layer["goodness"]) for layer in counts):
        return
    before = (read_json(path) or {}).get("steps", [])
    value = {
        "cost_log10_edges": COST_BINS.edges(),
        "goodness_log10_edges": GOODNESS_BINS.edges(),
        "steps": [*(each for each in before if each["step"] < step), {"step": step, "layers": counts}],
    }
    write_whole(path, json.dumps(value))


def last_distributions(text: str) -> Distributions:
    """Those of the last step in a file's text.

    Raises:
        ValueError: the text is not what `add_distributions` writes.
    """
    try:
        value: dict[str, Any] = json.loads(text)
        last = value["steps"][-1]
        edges = {name: np.array(value[f"{name}_log10_edges"], float) for name in ("cost", "goodness")}
        found = {
            name: {int(each["layer"]): _distribution(edges[name], each[name]) for each in last["layers"]}
            for name in edges
        }
        return Distributions(int(last["step"]), **found)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a file of distributions ({error!r})") from error


def _distribution(edges: np.ndarray, counts: list[float]) -> Distribution:
    if len(counts) != len(edges) + 1:
        raise ValueError(f"{len(counts)} counts for {len(edges)} edges; expected one more than edges")
    return Distribution(edges, np.array(counts, float))
