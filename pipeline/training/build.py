"""From an experiment's settings to the model, its learning dynamics and its schedule."""

import math
from typing import Literal

import torch

from pipeline.data import tokens
from pipeline.errors import UserError
from pipeline.settings.config import Experiment, TrainingConfig
from pipeline.training.optimizers import optimizers
from tiny_onn.arm import Arm, arm, configure
from tiny_onn.compiling import compiler_problem
from tiny_onn.dynamics import EngineName, LearningDynamics
from tiny_onn.model import GridTransformer

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.float32}


def build_model(experiment: Experiment, device: torch.device | str = "cpu") -> GridTransformer:
    """The experiment's model, initialised from its seed alone: within a seed, all arms start alike."""
    size, training = experiment.model, experiment.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = GridTransformer(
            vocabulary=tokens.VOCABULARY_SIZE,
            coordinates=tokens.COORDINATE_RANGE,
            hidden=size.hidden,
            layers=size.layers,
            heads=size.heads,
            gain=size.gain,
            density=size.density,
            gate_parameter=size.gate_parameter,
        )
    configure(model, arm_of(training))
    return model.to(device=device, dtype=DTYPES[training.precision])


def arm_of(training: TrainingConfig) -> Arm:
    """The arm that trains, with the parts that the settings replace."""
    return arm(training.arm, training.parts.model_dump())


def build_dynamics(model: GridTransformer, training: TrainingConfig) -> LearningDynamics:
    """With two optimizers, one a stream; weight decay on the computation stream's matrices only."""
    if compiling(training, next(model.parameters()).device) == "blocks":
        model.compile_blocks()
    return LearningDynamics(
        model,
        arm_of(training),
        *optimizers(model, training),
        engine=engine_of(training),
        clip_norm=training.clip_norm,
        use_compiler=compiling(training, next(model.parameters()).device) != "eager",
    )


def engine_of(training: TrainingConfig) -> EngineName:
    """The engine that `training.engine` comes to for this arm."""
    if training.engine == "auto":
        return "hooks" if arm_of(training).measures_layers else "fused"
    return training.engine


def compiling(
    training: TrainingConfig, device: torch.device | str = "cpu"
) -> Literal["eager", "elementwise", "blocks"]:
    """What `training.compile` comes to on this machine.

    Raises:
        UserError: compilation is asked for and cannot be.
    """
    problem = compiler_problem(device)
    if training.compile == "auto":
        return "eager" if problem else "elementwise"
    if training.compile != "eager" and problem:
        raise UserError(f"training.compile: {training.compile} needs torch.compile, but {problem}; use compile: auto")
    return training.compile


def schedule(training: TrainingConfig, step: int) -> float:
    """The factor on both learning rates at a step, counted from 0: linear warm-up, then to a tenth along a line or
    half a cosine, or 1."""
    if step < training.warmup_steps:
        return (step + 1) / (training.warmup_steps + 1)
    if training.schedule == "constant":
        return 1.0
    part = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    if training.schedule == "cosine":
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * part))
    return 1.0 - 0.9 * (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)


def set_learning_rates(dynamics: LearningDynamics, training: TrainingConfig, step: int) -> tuple[float, float]:
    """Sets both optimizers' rates for this step; returns them, computation first."""
    factor = schedule(training, step)
    rates = (training.learning_rate * factor, training.router_learning_rate * factor)
    for optimizer, rate in zip((dynamics.computation_optimizer, dynamics.router_optimizer), rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
    return rates
