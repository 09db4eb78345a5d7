"""A trained model as a folder: safetensors and JSON, no pickle.

It holds `weights.safetensors`, `model.json` (the experiment, the step, the held-out loss there, the sha256 of the
weights) and `MLmodel`, by which `mlflow.pyfunc.load_model` finds `_load_pyfunc` below. That function of MLflow imports
whatever module an `MLmodel` names: it is for stores whose writers are trusted to run code here. Our own `load_model`
never reads `MLmodel`.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.data.contract import BUILT_IN, find_task
from pipeline.data.manifest import file_hash
from pipeline.data.model_use import Answers
from pipeline.errors import UserError
from pipeline.files import flush
from pipeline.foreign_json import DamagedJson, integer, read_object_file
from pipeline.settings.config import Experiment, PartsConfig, replace
from pipeline.settings.experiment_file import validate_experiment
from pipeline.training.build import build_model
from pipeline.training.checkpoint import write_tensors
from pipeline.training.tied import with_ties, without_ties
from tiny_onn.gates import MAS
from tiny_onn.layers import sparse_layers

SCHEMA_VERSION = 1
_WEIGHTS, _CARD, _MLMODEL = "weights.safetensors", "model.json", "MLmodel"
_MOST_CARD_BYTES = 2**20
_LAST_STEP = 2**53


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model, ready to draw, and the experiment that it was trained by.

    `step` is how far it was trained, and `held_out_loss` what was measured then, in nats per labelled token; None where
    that is not known, as of models from before it was noted. `is_best`: no kept checkpoint of its run has a lower loss.
    """

    model: nn.Module
    experiment: Experiment
    step: int | None = None
    held_out_loss: float | None = None
    is_best: bool = False

    def predict(self, given: Any, *options: Any, **named: Any) -> Any:
        """What the model says to `given`: of ARC the grid that it draws for a task's test pair (`predict_one` in
        `pipeline.tasks.arc_predictions`), of text how it continues a prompt (`continue_text` in `pipeline.tasks.text`).

        Raises:
            UserError: the task has no predictions, or what is given is malformed.
        """
        name = self.experiment.data.task
        task = find_task(name)
        if task.predict is None:
            raise UserError(
                f"the model was trained with data.task: {name!r}, which has no `predict`; call its `model` itself, or "
                "give the task a `predict` (docs/tasks.md)"
            )
        return task.predict(self, given, *options, **named)

    def answer(self, file: Path) -> Answers:
        """The model's answers to what is in a file: of ARC to a file of tasks, of text to the prompts in its lines.

        Raises:
            UserError: the task answers no files, or the file cannot be read or is malformed.
        """
        name = self.experiment.data.task
        task = find_task(name)
        if task.answer is None:
            raise UserError(
                f"the model was trained with data.task: {name!r}, which answers no files; use "
                "pipeline.api.load_model(run), or give the task an `answer` (docs/tasks.md)"
            )
        answers = task.answer(self, file)
        if not isinstance(answers, Answers):
            raise UserError(
                f"data.task: {name!r}: `answer` returned a {type(answers).__name__}; expected pipeline.tasks.Answers"
            )
        return answers


def save_model(
    folder: Path,
    model: nn.Module,
    experiment: Experiment,
    *,
    step: int | None = None,
    held_out_loss: float | None = None,
    is_best: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the folder that `open_model` reads, in the place of one that is there: aside, flushed and renamed, so that
    no half of it is ever seen under its name.

    Args:
        step, held_out_loss, is_best: see TrainedModel; a loss that is not finite is none.
        weights: to write in place of the model's own, as of an earlier step.

    Raises:
        OSError: the disk is full, or will not be written to.
    """
    aside = folder.with_name(f".{folder.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed process left
    aside.mkdir(parents=True)
    try:
        state = without_ties(model.state_dict()) if weights is None else weights
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        write_tensors(aside / _WEIGHTS, weights)
        card = {
            "schema_version": SCHEMA_VERSION,
            "experiment": experiment.model_dump(mode="json"),
            "computes_as_adr": _computes_as_adr(model),
            "step": step,
            "held_out_loss": held_out_loss if held_out_loss is not None and math.isfinite(held_out_loss) else None,
            "is_best": is_best,
            "sha256": {_WEIGHTS: file_hash(aside / _WEIGHTS)},
        }
        (aside / _CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
        flavours = {"python_function": {"loader_module": __name__, "data": ".", "python_version": python_version()}}
        # MLflow reads YAML, of which JSON is a part.
        (aside / _MLMODEL).write_text(json.dumps({"flavors": flavours}, indent=1), encoding="utf-8")
        for path in (aside / _WEIGHTS, aside / _CARD, aside / _MLMODEL, aside):
            flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # the room is needed
        raise
    flush(folder.parent)  # the result comes after, and stays


def is_model(folder: Path) -> bool:
    """Whether `save_model` wrote this folder."""
    return (folder / _CARD).is_file()


def open_model(folder: Path, device: torch.device | str = "cpu", *, own_code: bool = False) -> TrainedModel:
    """The model in a folder that `save_model` wrote, verified.

    Args:
        own_code: import the code that the folder's model.json names, a model, a task, or an arm's gate of one's own,
            and run it. Whoever can write to the folder chooses it.

    Raises:
        UserError: a file is missing, altered, or of another version; or it names code, which is not to be imported.
    """
    try:
        card = read_object_file(folder / _CARD, _MOST_CARD_BYTES)
        version, expected = card["schema_version"], card["sha256"][_WEIGHTS]
        if version != SCHEMA_VERSION:
            raise UserError(f"{folder / _CARD}: schema version {version!r}, expected {SCHEMA_VERSION}")
        experiment = validate_experiment(card["experiment"], str(folder / _CARD))
        actual = file_hash(folder / _WEIGHTS)
        if actual != expected:
            raise UserError(f"{folder / _WEIGHTS}: sha256 {actual[:12]}, expected {expected[:12]}; it has been altered")
        weights = load_file(folder / _WEIGHTS)
        computed = _to_compute(experiment, card, weights, str(folder))
        if not own_code:
            refuse_own_code(computed, folder / _CARD)
        model = build_model(computed)
        model.load_state_dict(with_ties(weights, model))
        step, loss = card.get("step"), card.get("held_out_loss")
        facts = None if step is None else integer(step, most=_LAST_STEP), None if loss is None else float(loss)
    except (OSError, DamagedJson, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a readable model ({type(error).__name__}: {error})") from error
    return TrainedModel(model.to(device).eval(), experiment, *facts, is_best=card.get("is_best") is True)


def refuse_own_code(experiment: Experiment, source: Path) -> None:
    """Whether a model can be made again without code of somebody's own; `source` is the file that names it.

    Raises:
        UserError: it cannot.
    """
    task, training = experiment.data.task, experiment.training
    named = [f"data.task: {task}"] if task not in BUILT_IN else []
    named += [f"model.build: {experiment.model.build}"] if experiment.model.build else []
    parts = {"arm": training.arm} | {f"parts.{part}": name for part, name in training.parts.model_dump().items()}
    named += [f"training.{part}: {name}" for part, name in parts.items() if isinstance(name, str) and ":" in name]
    if named:
        raise UserError(
            f"{source}: names code, {' and '.join(named)}, which would run with your rights. Where you trust whoever "
            "could write this file, import it by own_code=True, on the command line --own-code."
        )


def _computes_as_adr(model: nn.Module) -> bool:
    """Whether it computes what a model of the ADR's arms does: they differ in how they learn alone."""
    return all(layer.rule.gate is MAS and layer.regulation is None for layer in sparse_layers(model).values())


def _to_compute(experiment: Experiment, card: dict[str, Any], weights: Mapping[str, Any], source: str) -> Experiment:
    """The experiment as far as it says what the model computes: an arm of one's own need not be importable here.

    A card of before the gates says nothing of them, and its model has a G.
    """
    changes: dict[str, Any] = {"training.engine": "auto", "training.compile": "auto"}
    if any(name.endswith("gate_param") for name in weights) and experiment.model.gate_parameter == "off":
        changes["model.gate_parameter"] = "zero"
    if card.get("computes_as_adr", True):
        changes |= {"training.arm": "task_only", "training.parts": PartsConfig().model_dump()}
    return replace(experiment, changes, source)


def _load_pyfunc(path: str) -> TrainedModel:
    """For mlflow.pyfunc.load_model; its result's `predict` is that of the TrainedModel."""
    return open_model(Path(path), own_code=True)
