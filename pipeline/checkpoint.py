"""Checkpoints that are whole or not there: safetensors and JSON, no pickle, each file's sha256 in a manifest."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from tiny_onn.dynamics import LearningDynamics

SCHEMA_VERSION = 1


def save_checkpoint(folder: Path, step: int, dynamics: LearningDynamics, digest: str, keep: int) -> Path:
    """Writes folder/step-<step> aside, flushes it to disk and renames it; then removes all but the newest `keep`.

    Args:
        digest: of the experiment; `load_newest` refuses a checkpoint of another.
    """
    target = folder / f"step-{step:06d}"
    aside = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(_flatten(dynamics), aside / "state.safetensors")
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "experiment": digest,
        "sha256": {"state.safetensors": _sha256(aside / "state.safetensors")},
    }
    (aside / "manifest.json").write_text(json.dumps(manifest))
    for path in (aside / "state.safetensors", aside / "manifest.json", aside):
        _flush(path)
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    _flush(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_newest(folder: Path, dynamics: LearningDynamics, digest: str) -> tuple[int, list[str]]:
    """Loads the newest good checkpoint; returns (its step, what was wrong with newer ones). (0, []) if there is none.

    Raises:
        UserError: there are checkpoints, but none is good: never a silent restart from 0.
    """
    found = checkpoints(folder)
    problems: list[str] = []
    for path in reversed(found):
        try:
            step, state = read_checkpoint(path, digest)
            _restore(dynamics, state)
        except UserError as error:
            problems.append(str(error))
        else:
            return step, problems
    if found:
        raise UserError(
            "no checkpoint can be used:\n  " + "\n  ".join(problems) + f"\nRemove {folder} to start this trial anew."
        )
    return 0, []


def read_checkpoint(path: Path, digest: str | None = None) -> tuple[int, dict[str, Tensor]]:
    """(step, tensors) of one checkpoint, verified.

    Raises:
        UserError: it is truncated, altered, of another schema or of another experiment.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        version, step, expected = manifest["schema_version"], int(manifest["step"]), manifest["sha256"]
        experiment = manifest["experiment"]
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}: schema version {version!r}, expected {SCHEMA_VERSION}")
        if digest is not None and experiment != digest:
            raise UserError(f"{path}: belongs to experiment {experiment}, expected {digest}")
        actual = _sha256(path / "state.safetensors")
        if actual != expected["state.safetensors"]:
            raise UserError(
                f"{path}/state.safetensors: sha256 {actual[:12]}, expected {expected['state.safetensors'][:12]}"
            )
        return step, load_file(path / "state.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error})") from error


def _flatten(dynamics: LearningDynamics) -> dict[str, Tensor]:
    state = {f"model/{name}": t.detach().contiguous() for name, t in dynamics.model.state_dict().items()}
    for stream, optimizer in _optimizers(dynamics).items():
        for place, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                state[f"{stream}/{place}/{slot}"] = value.detach().contiguous()
    return state


def _restore(dynamics: LearningDynamics, state: dict[str, Tensor]) -> None:
    model = {name.removeprefix("model/"): t for name, t in state.items() if name.startswith("model/")}
    try:
        dynamics.model.load_state_dict(model)
    except RuntimeError as error:
        raise UserError(f"the checkpoint does not fit the model: {error}") from error
    for stream, optimizer in _optimizers(dynamics).items():
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith(f"{stream}/"):
                _, place, slot = name.split("/")
                slots.setdefault(int(place), {})[slot] = tensor
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, values in slots.items():
            if index >= len(parameters) or values["exp_avg"].shape != parameters[index].shape:
                raise UserError(f"the checkpoint's {stream} state {index} does not fit the model's parameters")
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def _optimizers(dynamics: LearningDynamics) -> dict[str, torch.optim.Optimizer]:
    return {"computation": dynamics.computation_optimizer, "router": dynamics.router_optimizer}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
