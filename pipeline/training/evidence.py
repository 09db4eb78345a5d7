"""What is kept when training has to stop: each worker's tasks, what went wrong and where, and the state it had."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.training.agreement import gather_json
from pipeline.training.checkpoint import Digest, newest_whole, save_checkpoint
from pipeline.training.replicas import ReplicasDiffer
from pipeline.training.step import batch_loss, parts_of
from pipeline.training.stopping import TrainingStopped
from tiny_onn.capture import CaptureError
from tiny_onn.dynamics import LearningDynamics, NonFiniteStep
from tiny_onn.layers import CallPoint

_NAMED_TASKS = 3  # in the error; the evidence has them all


def stop(
    folder: TrialFolder,
    step: int,
    batch: Batch,
    dynamics: LearningDynamics,
    digest: str,
    error: NonFiniteStep | CaptureError | ReplicasDiffer,
    *,
    autocast: bool,
    micro_batches: int = 1,
) -> TrainingStopped:
    """Keeps the evidence of a failed step and returns the error to raise.

    In folder.evidence/step-<step>/rank-<rank> are what.json and, as a checkpoint, the state; see `TrialFolder`. What is
    not finite or out of step is known on all workers: they call this together, rank 0 writes what all of them saw, and
    none returns before it is written. A CaptureError may be one worker's own, who then writes without the others.

    Args:
        step: the step that failed, counted from 1.
    """
    device = batch.tokens.device
    what: dict[str, Any] = {"rank": _rank(), "step": step, "task_ids": list(batch.task_ids), "why": str(error)}
    if isinstance(error, NonFiniteStep):
        what |= {
            "not_finite": list(error.quantities),
            "gradients_not_finite": list(error.parameters),
            **_inspect(dynamics.model, batch, autocast, micro_batches),
        }
    alone = isinstance(error, CaptureError)
    everyone = [what] if alone else gather_json(what, device)
    place = folder.evidence / f"step-{step:06d}"
    done = step if isinstance(error, ReplicasDiffer) else step - 1
    problem = ""
    try:
        if alone or _rank() == 0:
            for each in everyone:
                write_whole(place / f"rank-{each['rank']}" / "what.json", json.dumps(each, indent=1))
        if alone or _rank() == 0 or isinstance(error, ReplicasDiffer):  # elsewhere the state is the same as on rank 0
            save_checkpoint(place / f"rank-{_rank()}", done, dynamics, digest, keep=1)
    except OSError as full:
        problem = f" (not whole: {full})"
    if not alone:
        problem = next(filter(None, gather_json(problem, device)), "")
    return TrainingStopped(f"step {step}: {_explain(error, everyone)}. Evidence and state: {place}{problem}")


@contextlib.contextmanager
def disk_errors(folder: TrialFolder, doing: str, digest: Digest) -> Iterator[None]:
    """Has what the disk refuses end as a TrainingStopped that names the folder and the last whole checkpoint."""
    try:
        yield
    except OSError as error:
        last = newest_whole(folder.checkpoints, digest)
        kept = "There is no checkpoint yet" if last is None else f"The checkpoint of step {last} is whole"
        raise TrainingStopped(
            f"{folder.root}: {doing} failed: {error}. {kept}: make room on the disk and resume, and it goes on from "
            f"{'the start' if last is None else 'there'}."
        ) from error


def _explain(error: Exception, everyone: list[dict[str, Any]]) -> str:
    if not isinstance(error, NonFiniteStep):
        return f"{error} ({_tasks(everyone[0])})" if isinstance(error, CaptureError) else str(error)
    guilty = [each for each in everyone if each["layer"] or each["own_gradients_not_finite"]]
    notes = []
    for each in (guilty or everyone)[:2]:
        where = each["layer"] or next(iter(each["own_gradients_not_finite"]), None)
        seen = f"first in {where}" if where else f"first gradient: {next(iter(error.parameters), 'none')}"
        notes.append(f"rank {each['rank']}, {seen}, {_tasks(each)}")
    return f"non-finite {', '.join(error.quantities)}: {'; '.join(notes)}"


def _tasks(what: dict[str, Any]) -> str:
    ids = list(dict.fromkeys(what["task_ids"]))
    more = f" and {len(ids) - _NAMED_TASKS} more" if len(ids) > _NAMED_TASKS else ""
    return f"tasks {', '.join(ids[:_NAMED_TASKS])}{more}"


def _inspect(model: nn.Module, batch: Batch, autocast: bool, micro_batches: int) -> dict[str, Any]:
    """Runs this worker's share again, by itself: its own loss, and the first layer and gradients not finite."""
    layer: list[str] = []
    names = {module: name for name, module in model.named_modules() if name and not isinstance(module, CallPoint)}

    def note_nonfinite(module: nn.Module, _: Any, output: Any) -> None:
        if not layer and isinstance(output, Tensor) and not output.isfinite().all():
            layer.append(names[module])

    parameters = dict(reversed(list(model.named_parameters())))
    handles = [module.register_forward_hook(note_nonfinite) for module in names]
    loss: float | None = 0.0
    bad, problem = set[str](), None
    try:
        with torch.compiler.set_stance("force_eager"):
            for part in parts_of(batch, micro_batches):
                total = batch_loss(model, part, autocast=autocast)
                grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
                loss = (loss or 0.0) + float(total.detach())
                bad |= {n for n, g in zip(parameters, grads, strict=True) if g is not None and not g.isfinite().all()}
    except RuntimeError as error:  # of memory above all; the other workers wait for what is known without it
        loss, problem = None, f"{type(error).__name__}: {error}"
    finally:
        for handle in handles:
            handle.remove()
    return {
        "own_loss": str(loss),
        "layer": layer[0] if layer else None,
        "own_gradients_not_finite": [name for name in parameters if name in bad],
        "parameters_not_finite": [name for name, p in parameters.items() if not p.isfinite().all()],
        "second_look": problem,
    }


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
