"""A trial's model at a step: as it ended, at its best, or at any checkpoint that is kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from pipeline import measures
from pipeline.errors import UserError
from pipeline.foreign_json import DamagedJson, read_object_file
from pipeline.layout import TrialFolder
from pipeline.records.spool import spool_lines
from pipeline.settings.config import replace
from pipeline.settings.experiment_file import validate_experiment
from pipeline.training.build import build_model
from pipeline.training.checkpoint import best_step, checkpoints, read_checkpoint
from pipeline.training.model_file import TrainedModel, open_model, refuse_own_code
from pipeline.training.tied import with_ties

Step = int | Literal["last", "best"]
"""A step that was saved; "best", the saved one with the lowest held-out loss; "last", the end of training."""

_MOST_CONFIG_BYTES = 2**20


def open_step(
    trial: TrialFolder, step: Step, device: torch.device | str = "cpu", *, own_code: bool = False
) -> TrainedModel:
    """The model of a trial at a step, from the trial's folder, verified; `own_code` as in `open_model`; a checkpoint
    needs it for any arm or part of one's own, as it does not say how its model computes.

    Raises:
        UserError: it is not kept (names the steps that are), or damaged.
    """
    ended = [
        open_model(folder, device, own_code=own_code) for folder in (trial.model, trial.best_model) if folder.is_dir()
    ]
    if (trained := chosen(ended, step)) is not None:
        return trained
    kept = {int(path.name.removeprefix("step-")): path for path in checkpoints(trial.checkpoints)}
    losses = held_out_losses(trial)
    best = best_step(kept, losses)
    wanted = {"best": best, "last": max(kept, default=None)}[step] if isinstance(step, str) else step
    if wanted is None or wanted not in kept:
        raise UserError(f"{trial.root}: {not_kept(step, kept)}")
    try:
        settings = validate_experiment(read_object_file(trial.config, _MOST_CONFIG_BYTES), str(trial.config))
    except (OSError, DamagedJson) as error:
        raise UserError(f"{trial.config}: cannot be read ({error}). Expected the folder of a trial.") from error
    if not own_code:
        refuse_own_code(settings, trial.config)
    _, state = read_checkpoint(kept[wanted])
    model = build_model(replace(settings, {"training.engine": "auto", "training.compile": "auto"}, str(trial.config)))
    try:
        model.load_state_dict(with_ties(model_of(state), model))
    except RuntimeError as error:
        raise UserError(f"{kept[wanted]}: does not fit the model of {trial.config} ({error})") from error
    return TrainedModel(model.to(device).eval(), settings, wanted, losses.get(wanted), is_best=wanted == best)


def chosen(ended: list[TrainedModel], step: Step) -> TrainedModel | None:
    """Of the models that a finished trial has left, the one as it ended first, that at `step`; None if it is none."""
    fitting = {"last": ended[:1], "best": [model for model in ended if model.is_best]}
    models = fitting[step] if isinstance(step, str) else [model for model in ended if model.step == step]
    return next(iter(models), None)


def not_kept(step: Step, kept: Mapping[int, Path] | list[int]) -> str:
    """Why there is no model at a step, as a sentence without its subject."""
    there = ", ".join(map(str, sorted(kept))) or "none"
    what = {"best": "no checkpoint whose held-out loss was measured", "last": "no checkpoint"}.get(
        str(step), f"no checkpoint of step {step}"
    )
    return (
        f"has {what}; the steps that are kept: {there}. A run keeps its newest training.keep_checkpoints, and of those "
        "that were evaluated the best."
    )


def model_of(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's own part of a checkpoint's tensors."""
    return {name.removeprefix("model/"): tensor for name, tensor in state.items() if name.startswith("model/")}


def held_out_losses(trial: TrialFolder) -> dict[int, float]:
    """The held-out loss of each step that was evaluated, from the trial's metrics."""
    losses = ((line.step, line.metrics.get(measures.HELD_OUT_LOSS)) for line in spool_lines(trial.spool))
    return {step: loss for step, loss in losses if loss is not None}
