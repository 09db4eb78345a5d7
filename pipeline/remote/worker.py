"""A worker's training of a trial that lies in a storage: from what is there, in a folder of its own, and back."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.layout import TrialFolder
from pipeline.remote.pusher import Pusher
from pipeline.remote.storage import Storage, StorageError, patiently
from pipeline.remote.trial import RemoteTrial, restore
from pipeline.settings.config import Experiment
from pipeline.training.evidence import TrainingStopped, agree

Report = Callable[[int, float], None]


def train_remotely(
    experiment: Experiment,
    remote: RemoteTrial,
    scratch: TrialFolder,
    rank: int,
    device: torch.device,
    train: Callable[[Report], object],
    report: Report,
) -> None:
    """Fills `scratch` from the storage, trains there by `train`, and has rank 0 put what it writes into the storage.

    Every worker calls it, each with a scratch folder that no other uses; it is removed when the trial is finished.

    Args:
        train: trains in `scratch`, calling what it is given on every worker after every log.
        report: called there in turn.

    Raises:
        TrainingStopped: as `train`, with the evidence put too; or the storage has been away for too long, on all
            workers in the same step.
        StorageError: the storage is away at the start, or for too long at the end.
    """
    index = patiently(lambda: restore(remote, scratch, experiment.digest(), everything=rank == 0))
    pusher = Pusher(remote, scratch, index) if rank == 0 else None

    def push_and_report(step: int, loss: float) -> None:
        stopped: TrainingStopped | None = None
        try:
            if pusher:
                pusher.push()
        except OSError as error:
            stopped = TrainingStopped(f"step {step}: {error}. Resume when it is back, and training goes on from there.")
        agree(stopped, device)
        report(step, loss)

    try:
        train(push_and_report)
    except TrainingStopped as error:
        if pusher:
            with contextlib.suppress(OSError):
                pusher.close()
        place = remote.files / scratch.evidence.name
        if _put_all(scratch.evidence, place):
            raise TrainingStopped(f"{error}. A copy is in {place}") from error
        raise
    if pusher:
        pusher.close()
    shutil.rmtree(scratch.root)
    with contextlib.suppress(OSError):  # other workers may still be in it
        scratch.root.parent.rmdir()


def _put_all(folder: Path, target: Storage) -> bool:
    """Puts every file under `folder`; False when there is none, or the storage does not take them."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    try:
        for path in paths:
            (target / path.relative_to(folder).as_posix()).upload(path)
    except (StorageError, FileNotFoundError):
        return False
    return bool(paths)
