"""What rank 0 alone writes of a trial, and the metrics of a step."""

import json
import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pipeline import measures
from pipeline.files import flush, write_whole
from pipeline.layout import TrialFolder
from pipeline.records.spool import Spool, spool_lines
from pipeline.settings.config import TrainingConfig
from pipeline.training.checkpoint import write_tensors
from pipeline.training.distributions import DistributionPieces
from pipeline.training.step import StepReport
from tiny_onn.dynamics import LearningDynamics
from tiny_onn.layers import sparse_layers
from tiny_onn.routing_health import Health


@dataclass(frozen=True)
class TrialWriter:
    """Writes the spool, prototype snapshots and the result. `problems` are the checkpoints that could not be used."""

    folder: TrialFolder
    spool: Spool
    problems: list[str]

    def prototypes(self, step: int, dynamics: LearningDynamics, health: dict[str, Health] | None) -> None:
        """A snapshot of all prototypes and of how each expert was judged."""
        tensors = {}
        for name, layer in sparse_layers(dynamics.model).items():
            title = "L{}.{}".format(*place_of(name))
            tensors[f"{title}/prototypes"] = layer.proto_weight.detach().float().cpu().contiguous()
            if health:
                seen = health[name]
                tensors[f"{title}/activation"] = (seen.active / seen.scalars[0]).float().cpu()
                if dynamics.cost is not None:
                    tensors[f"{title}/good"] = (seen.good / seen.scalars[3]).float().cpu()
            else:  # nothing has been routed yet: all experts stand as they were initialised
                tensors[f"{title}/activation"] = torch.zeros(layer.out_features)
        self.folder.prototypes.mkdir(parents=True, exist_ok=True)
        aside = self.folder.prototypes / f".step-{step:06d}"
        write_tensors(aside, tensors)
        flush(aside)
        aside.rename(self.folder.prototypes / f"step-{step:06d}.safetensors")

    @cached_property
    def _pieces(self) -> DistributionPieces:
        return DistributionPieces(self.folder.distributions)

    def distributions(self, step: int, health: dict[str, Health] | None) -> None:
        """Adds the step's histograms of learning cost and Goodness, by layer."""
        layers: dict[int, list[Health]] = {}
        for name, seen in (health or {}).items():
            layers.setdefault(place_of(name)[0], []).append(seen)
        self._pieces.add(step, layers)

    def result(self, metrics: dict[str, float], facts: dict[str, Any]) -> None:
        """Written last: with it, the trial is finished."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        result = {"metrics": finite, **facts, "checkpoint_problems": self.problems}
        write_whole(self.folder.result, json.dumps(result, indent=1))


def place_of(name: str) -> tuple[int, str]:
    """(layer, projection) of a module of GridTransformer: (3, "q") of "blocks.3.attention.q"."""
    _, layer, _, projection = name.split(".")
    return int(layer), projection


def is_snapshot(done: int, training: TrainingConfig) -> bool:
    """Whether this logged step is among the evenly spaced ones of which prototypes are kept, the last step included."""
    wanted = training.prototype_snapshots
    evenly = (math.ceil(k * training.steps / wanted) for k in range(1, wanted + 1))
    return any(0 <= done - step < training.log_every for step in evenly)


def metrics_at(folder: TrialFolder, step: int) -> dict[str, float]:
    """What was logged at `step`, for a run that goes on from there."""
    return next((line.metrics for line in spool_lines(folder.spool) if line.step == step), {})


def step_metrics(outcome: StepReport, by_module: bool, has_goodness: bool) -> dict[str, float]:
    """The step's metrics; those of single modules, most of all there are, only where asked for.

    What came to nothing in this step is NaN, or what an earlier step came to would pass for the last. What an arm
    without Goodness never has is left out.
    """
    metrics = {
        measures.TASK_LOSS: float(outcome.task_loss),
        measures.META_LOSS: float(outcome.dynamics.meta_loss),
        measures.GRADIENT_NORM: float(outcome.dynamics.gradient_norm),
    }
    layers: dict[tuple[str, int], list[float]] = {}
    for name, health in (outcome.dynamics.health or {}).items():
        layer, projection = place_of(name)
        for measure, value in health.measures().items():
            if by_module:
                metrics[measures.by_module(measure, layer, projection)] = value
            layers.setdefault((measure, layer), []).append(value)
    for (measure, layer), values in layers.items():
        known = [value for value in values if math.isfinite(value)]
        metrics[measures.by_layer(measure, layer)] = statistics.fmean(known) if known else math.nan
    lacking = () if has_goodness else (measures.META_LOSS, *measures.OF_GOODNESS)
    return {name: value for name, value in metrics.items() if not name.startswith(lacking)}
