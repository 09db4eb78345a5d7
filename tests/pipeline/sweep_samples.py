"""Trials with known numbers, as a worker would leave them."""

import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pipeline.layout import Output, TrialFolder
from pipeline.records.spool import Spool
from pipeline.settings.config import DataConfig, Experiment, ModelConfig, SweepConfig, TrainingConfig
from pipeline.settings.trials import Trial, trials_of

ARMS = ("per_token", "aggregated", "task_only")
SEEDS = (0, 1, 2)
DENSITY = {"per_token": 0.05, "aggregated": 0.5, "task_only": 0.4}
LOSS = {"per_token": (1.0, 1.2, 1.1), "aggregated": (0.9, 1.15, 1.0), "task_only": (1.0, 1.3, math.nan)}
EXTRA = {"data_name": "arc-agi-2", "data_hash": "0123456789abcdef", "data_counts": '{"train": 8}'}


def experiment(name: str = "sample", arms=ARMS, seeds=SEEDS, grid=None) -> Experiment:
    return Experiment(
        name=name,
        description="Known numbers.",
        data=DataConfig(max_tokens=64),
        model=ModelConfig(hidden=8, layers=3, heads=2),
        training=TrainingConfig(steps=20, batch_tokens=64, warmup_steps=2),
        sweep=SweepConfig(arms=arms, seeds=seeds, grid=grid or {}),
    )


def trials(output: Output, sample: Experiment) -> list[tuple[Trial, TrialFolder]]:
    return [(trial, output.trial(sample.name, trial.key)) for trial in trials_of(sample)]


def metrics_at(trial: Trial, step: int) -> dict[str, float]:
    arm, seed = trial.experiment.training.arm, trial.experiment.training.seed
    values = {"train/task_loss": 3.0 - step / 20, "speed/step_seconds": 0.1 + step / 1000}
    if step == 20:
        values |= {"held_out/loss": LOSS[arm][seed], "held_out/token_accuracy": 0.5 + 0.01 * seed}
        values["held_out/density"] = DENSITY[arm] * 2 * (1 + seed / 10)  # the mean of the layers
    for layer in range(3):
        values[f"activation_rate/L{layer}"] = 0.6 if step == 0 else DENSITY[arm] * (1 + layer) * (1 + seed / 10)
        values[f"mutual_information/L{layer}"] = 0.5 * (layer + 1)
        values[f"effective_experts/L{layer}"] = 8.0
        if arm != "task_only":
            values[f"fraction_good/L{layer}"] = 0.1 * (layer + 1)
            values[f"rank_correlation_contribution/L{layer}"] = 0.9
            values[f"rank_correlation_relevance/L{layer}"] = -0.1
            values[f"rank_correlation_cost/L{layer}"] = 0.2
    return values


def write_spool(trial: Trial, folder: TrialFolder, steps=(0, 10, 20)) -> None:
    spool = Spool(folder.spool)
    for step in steps:
        spool.write(step, metrics_at(trial, step))


def write_snapshot(folder: TrialFolder, step: int) -> Path:
    folder.prototypes.mkdir(parents=True, exist_ok=True)
    path = folder.prototypes / f"step-{step:06d}.safetensors"
    rows = np.arange(12, dtype="float32").reshape(4, 3)
    save_file({"L0.q/prototypes": rows**2, "L0.q/activation": rows[:, 0] / 20, "L0.q/good": rows[:, 0] / 20}, path)
    return path
