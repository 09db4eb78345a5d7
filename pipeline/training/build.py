"""From an experiment's settings to the model, its learning dynamics and its schedule."""

import math
from typing import Literal

import torch
from torch import nn

from pipeline.data.contract import ModelSettings, find_task, import_attribute
from pipeline.errors import UserError
from pipeline.settings.config import Experiment, TrainingConfig
from pipeline.training.optimizers import optimizers
from tiny_onn.arm import Arm, arm, configure
from tiny_onn.compiling import compiler_problem
from tiny_onn.dynamics import EngineName, LearningDynamics
from tiny_onn.layers import sparse_layers
from tiny_onn.model import GridTransformer

LONG_RUN = 5000  # steps, after which compiled blocks have saved what they took to compile, also for the first time
MANY_LOGGED = 100  # logged steps, after which compiled measures have saved what they took to compile
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.float32}


def build_model(experiment: Experiment, device: torch.device | str = "cpu") -> nn.Module:
    """The experiment's model, initialised from its seed alone: within a seed, all arms start alike.

    Raises:
        UserError: `model.build` or `data.task` cannot be imported, or does not build what it should.
    """
    training, settings = experiment.training, model_settings(experiment)
    name = experiment.model.build
    build = find_task(experiment.data.task).build or transformer
    if name is not None:
        build = import_attribute(name, "model.build", "a function of pipeline.tasks.ModelSettings")
        if not callable(build):
            raise UserError(f"model.build: {name!r} is a {type(build).__name__}; expected a function of ModelSettings")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = build(settings)
    who = f"model.build: {name!r}" if name is not None else f"data.task: {experiment.data.task!r}"
    if problem := _model_problem(model, settings):
        raise UserError(f"{who} {problem}")
    configure(model, arm_of(training))
    return model.to(device=device, dtype=DTYPES[training.precision])


def model_settings(experiment: Experiment) -> ModelSettings:
    """What the model is built from."""
    size, form = experiment.model, find_task(experiment.data.task).format
    return ModelSettings(
        vocabulary=form.vocabulary,
        outputs=form.outputs,
        coordinates=dict(form.coordinates),
        max_tokens=experiment.data.max_tokens,
        hidden=size.hidden,
        layers=size.layers,
        heads=size.heads,
        gain=size.gain,
        density=size.density,
        gate_parameter=size.gate_parameter,
        options=dict(size.options),
    )


def transformer(settings: ModelSettings) -> nn.Module:
    """The transformer of `tiny_onn.model`, with an embedding for each axis of coordinates."""
    return GridTransformer(
        vocabulary=settings.vocabulary,
        coordinates=settings.coordinates,
        outputs=settings.outputs,
        hidden=settings.hidden,
        layers=settings.layers,
        heads=settings.heads,
        **settings.routing,
    )


def _model_problem(model: object, settings: ModelSettings) -> str | None:
    if not isinstance(model, nn.Module):
        return f"returned a {type(model).__name__}; expected a torch.nn.Module"
    layers = sparse_layers(model)
    if not layers:
        return "returned a model without a tiny_onn.SparseProtoLinear; expected at least one, whose router is trained"
    for name, layer in layers.items():
        if layer.density != settings.density:
            return (
                f"returned a model whose layer {name} has density={layer.density}, but model.density: "
                f"{settings.density}; give each SparseProtoLinear **settings.routing"
            )
    return None


def arm_of(training: TrainingConfig) -> Arm:
    """The arm that trains, with the parts that the settings replace."""
    return arm(training.arm, training.parts.model_dump())


def build_dynamics(model: nn.Module, training: TrainingConfig) -> LearningDynamics:
    """With two optimizers, one a stream; weight decay on the computation stream's matrices only."""
    compiled = compiling(training, next(model.parameters()).device, model)
    if compiled == "blocks":
        if not isinstance(model, GridTransformer):
            raise UserError("training.compile: blocks needs the transformer of tiny_onn; use compile: auto")
        model.compile_blocks()
    return LearningDynamics(
        model,
        arm_of(training),
        *optimizers(model, training),
        engine=engine_of(training),
        clip_norm=training.clip_norm,
        use_compiler=compiled != "eager",
        compile_measures=_logs_often(training),
    )


def _logs_often(training: TrainingConfig) -> bool:
    """Whether compiling what a logged step measures saves more than it costs, a second or two of every trial. With a
    constant schedule, where a run may get more steps later, never: what is resumed measures as before."""
    return training.steps >= MANY_LOGGED * training.log_every and training.schedule != "constant"


def engine_of(training: TrainingConfig) -> EngineName:
    """The engine that `training.engine` comes to for this arm."""
    if training.engine == "auto":
        return "hooks" if arm_of(training).measures_layers else "fused"
    return training.engine


def compiling(
    training: TrainingConfig, device: torch.device | str = "cpu", model: nn.Module | None = None
) -> Literal["eager", "elementwise", "blocks"]:
    """What `training.compile` comes to on this machine.

    `auto` compiles the elementwise parts, and whole blocks where that pays: from `LONG_RUN` steps on. A run that is
    resumed computes as before: with a constant schedule, where a run may get more steps later, `auto` never compiles
    blocks.

    Args:
        model: the trial's, without DDP; None for the transformer of tiny_onn.

    Raises:
        UserError: compilation is asked for and cannot be.
    """
    problem = compiler_problem(device)
    if training.compile == "auto":
        if problem:
            return "eager"
        is_long = training.steps >= LONG_RUN and training.schedule != "constant"
        has_blocks = (model is None or isinstance(model, GridTransformer)) and engine_of(training) == "fused"
        works = training.precision != "float64"  # with which compiled blocks fail in torch before 2.12
        return "blocks" if is_long and has_blocks and works else "elementwise"
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
