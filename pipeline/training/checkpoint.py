"""Checkpoints that are whole or not there: safetensors and JSON, no pickle, each file's sha256 in a manifest."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import flush, write_whole
from pipeline.foreign_json import DamagedJson, read_bounded, read_object_file
from pipeline.training.tied import with_ties, without_ties
from tiny_onn.dynamics import LearningDynamics

SCHEMA_VERSION = 2
STATE, _MANIFEST = "state.safetensors", "manifest.json"
_BESIDE = "beside/"  # before the names of tensors that are of neither model nor optimizers
_NAME = re.compile(r"step-[0-9]{6,12}")
_MOST_MANIFEST_BYTES = 2**16
_LIKE_THE_PARAMETER = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}  # slots that have its shape
Digest = str | tuple[str, ...]
"""Of the experiment that a checkpoint is to be of; or several, of which it may be any."""
DAMAGE = "damage.txt"  # in a checkpoint that was damaged where it came from: what was wrong with it
_VERIFIED = "verified.json"  # in a checkpoint whose state was hashed as it arrived; see `note_verified`
_MOST_NOTE_BYTES = 1000


def save_checkpoint(
    folder: Path,
    step: int,
    dynamics: LearningDynamics,
    digest: str,
    keep: int,
    losses: Mapping[int, float] = MappingProxyType({}),
    beside: Mapping[str, Tensor] = MappingProxyType({}),
) -> Path:
    """Writes folder/step-<step> aside, flushes it to disk and renames it; then removes all but the newest `keep` and
    the best.

    Whenever it ends, by an error or a kill, what was whole before is whole still. One process at a time calls it: what
    another left half-written is removed. So are checkpoints of later steps: training would not be here, were they good.

    Args:
        digest: of the experiment; `load_newest` refuses a checkpoint of another.
        losses: held-out losses by step; of the checkpoints, the one with the lowest is the best.
        beside: further tensors that training needs to go on, by name.

    Raises:
        OSError: the disk is full, or will not be written to.
    """
    target = folder / f"step-{step:06d}"
    aside = folder / f".{target.name}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)
    try:
        aside.mkdir()
        others = {f"{_BESIDE}{name}": tensor.contiguous() for name, tensor in beside.items()}
        write_tensors(aside / STATE, _flatten(dynamics) | others)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "experiment": digest,
            "sha256": {STATE: _sha256(aside / STATE)},
        }
        (aside / _MANIFEST).write_text(json.dumps({**manifest, "manifest_sha256": _seal(manifest)}))
        for path in (aside / STATE, aside / _MANIFEST, aside):
            flush(path)
        if target.exists():
            target.rename(folder / f".{target.name}.replaced")
        aside.rename(target)
        flush(folder)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)  # the room is needed
        raise
    usable = [path for path in checkpoints(folder) if _step_of(path) <= step]
    best = best_step(map(_step_of, usable), losses)
    kept = [*usable[-keep:], *(path for path in usable if _step_of(path) == best)]
    for old in {*checkpoints(folder), *folder.glob(".step-*")} - {*kept}:
        shutil.rmtree(old)
    return target


def best_step(steps: Iterable[int], losses: Mapping[int, float]) -> int | None:
    """Of `steps`, the first with the lowest held-out loss; None where no loss of them is known and finite."""
    known = [(losses[step], step) for step in steps if math.isfinite(losses.get(step, math.nan))]
    return min(known)[1] if known else None


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, str] | None = None) -> None:
    """As safetensors, with `facts` in its head.

    Raises:
        OSError: the disk is full, or will not be written to.
    """
    try:
        save_file(tensors, path, facts)
    except SafetensorError as error:  # which is how it says so
        raise OSError(f"{path}: {error}") from error


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(
        (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()), key=_step_of
    )


def newest_whole(folder: Path, digest: Digest) -> int | None:
    """The step of the newest checkpoint that `load_newest` would read; None when there is none."""
    for path in reversed(checkpoints(folder)):
        with contextlib.suppress(UserError), _naming_damage(path):
            step = _verify(path, digest)
            with safe_open(path / STATE, "pt"):  # reads the header, which must fit the file's length
                return step
    return None


def note_verified(path: Path, sha256: str) -> None:
    """Notes in a checkpoint the sha256 of its state, computed while it was downloaded, so that it is not hashed again.

    The note holds for this very file: another inode, size or time of change, and the state is hashed.
    """
    write_whole(path / _VERIFIED, json.dumps({"sha256": sha256, **_identity(path / STATE)}))


def load_newest(
    folder: Path,
    dynamics: LearningDynamics,
    digest: Digest,
    take: Callable[[int, dict[str, Tensor]], None] = lambda step, beside: None,
) -> tuple[int, list[str]]:
    """Loads the newest good checkpoint; returns (its step, what was wrong with newer ones). (0, []) if there is none.

    Args:
        take: is given the step and what was saved `beside`; a UserError of it says that the checkpoint is no good.

    Raises:
        UserError: there are checkpoints, but none is good: never a silent restart from 0.
    """
    paths = checkpoints(folder)
    problems: list[str] = []
    for path in reversed(paths):
        try:
            step, state = read_checkpoint(path, digest)
            _restore(dynamics, state)
            take(step, {name.removeprefix(_BESIDE): t for name, t in state.items() if name.startswith(_BESIDE)})
        except UserError as error:
            problems.append(str(error))
        else:
            return step, problems
    if paths:
        raise UserError(
            "no checkpoint can be used:\n  " + "\n  ".join(problems) + f"\nRemove {folder} to start this trial anew."
        )
    return 0, []


def read_checkpoint(path: Path, digest: Digest | None = None) -> tuple[int, dict[str, Tensor]]:
    """(step, tensors) of one checkpoint, verified.

    Raises:
        UserError: it is truncated, altered, of another schema or of another experiment.
    """
    with _naming_damage(path):
        return _verify(path, digest), load_file(path / STATE)


def _verify(path: Path, digest: Digest | None) -> int:
    """The step of a checkpoint whose manifest is in order and whose state has the manifest's sha256."""
    if (path / DAMAGE).exists():
        raise UserError(f"{path}: damaged: {read_bounded(path / DAMAGE, 500).decode('utf-8', 'replace')}")
    manifest = read_object_file(path / _MANIFEST, _MOST_MANIFEST_BYTES)
    version, step, expected = manifest["schema_version"], manifest["step"], manifest["sha256"][STATE]
    experiment, sealed = manifest["experiment"], manifest.pop("manifest_sha256", None)
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version!r}, expected {SCHEMA_VERSION}")
    if sealed != _seal(manifest):
        raise UserError(f"{path}/{_MANIFEST}: does not match its own sha256; it has been altered")
    if step != _step_of(path):
        raise UserError(f"{path}: its manifest says step {step}; the folder must have been renamed or copied")
    expected_of = (digest,) if isinstance(digest, str) else digest
    if expected_of is not None and experiment not in expected_of:
        raise UserError(f"{path}: belongs to experiment {experiment}, expected {expected_of[0]}")
    actual = _noted_sha256(path) or _sha256(path / STATE)
    if actual != expected:
        raise UserError(f"{path}/{STATE}: sha256 {actual[:12]}, expected {expected[:12]}")
    return int(step)


def _noted_sha256(path: Path) -> str | None:
    """What `note_verified` wrote of the file that is there now."""
    if not (path / _VERIFIED).exists():
        return None
    note = read_object_file(path / _VERIFIED, _MOST_NOTE_BYTES)
    sha256 = note.pop("sha256", None)
    return sha256 if isinstance(sha256, str) and note == _identity(path / STATE) else None


def _identity(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"inode": status.st_ino, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Raises what reading a damaged checkpoint raises as a UserError that names it."""
    try:
        yield
    except (OSError, DamagedJson, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error})") from error


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _flatten(dynamics: LearningDynamics) -> dict[str, Tensor]:
    own = without_ties(dynamics.model.state_dict())
    state = {f"model/{name}": t.detach().contiguous() for name, t in own.items()}
    for stream, optimizer in _optimizers(dynamics).items():
        for place, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                state[f"{stream}/{place}/{slot}"] = value.detach().contiguous()
    return state


def _restore(dynamics: LearningDynamics, state: dict[str, Tensor]) -> None:
    model = {name.removeprefix("model/"): t for name, t in state.items() if name.startswith("model/")}
    try:
        dynamics.model.load_state_dict(with_ties(model, dynamics.model))
    except RuntimeError as error:
        raise UserError(f"the checkpoint does not fit the model: {error}") from error
    for stream, optimizer in _optimizers(dynamics).items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith(f"{stream}/"):
                _, place, slot = name.split("/")
                slots.setdefault(int(place), {})[slot] = tensor
        for index, values in slots.items():
            if index >= len(parameters) or any(
                values[slot].shape != parameters[index].shape for slot in values.keys() & _LIKE_THE_PARAMETER
            ):
                raise UserError(f"the checkpoint's {stream} state {index} does not fit the model's parameters")
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def _optimizers(dynamics: LearningDynamics) -> dict[str, torch.optim.Optimizer]:
    return {"computation": dynamics.computation_optimizer, "router": dynamics.router_optimizer}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
