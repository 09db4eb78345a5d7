"""A worker's training of a trial that lies in a storage: from what is there, in a folder of its own, and back."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.records.continued import open_again
from pipeline.remote.attempt import Changed, Overtaken, RemoteAttempt
from pipeline.remote.index import checkpoints_in, metrics_in, segments_in
from pipeline.remote.pusher import Pusher
from pipeline.remote.trial import RemoteTrial
from pipeline.settings.config import Experiment
from pipeline.storage.storage import Storage, StorageError, patiently
from pipeline.training.checkpoint import DAMAGE, STATE, Digest, newest_whole, note_verified
from pipeline.training.missing_ranks import naming_missing_ranks
from pipeline.training.stopping import TrainingStopped

OnLog = Callable[[int], None]


def train_remotely(
    experiment: Experiment,
    remote: RemoteAttempt,
    folder: TrialFolder,
    rank: int,
    train: Callable[[TrialFolder, OnLog], object],
) -> None:
    """Trains what the storage has of a trial in a folder of this worker's own, and has rank 0 put what it writes back.

    Every worker of the attempt calls it. The worker's folder lies under `folder`, the trial's here, and is removed when
    the trial is finished.

    Args:
        train: trains in the folder that it is given, calling its second argument on every worker with each step that
            is logged; what that raises stops training on all of them.

    Raises:
        TrainingStopped: as `train`, with the evidence put too; or, on all workers in the same step, the storage has
            been away for too long, or another attempt has begun.
        MissingRanks: some workers did not arrive where the others waited.
        StorageError: the storage is away at the start, or for too long at the end.
    """
    scratch = folder.scratch(remote.number, rank)
    _remove_before(scratch.root.parent)
    patiently(lambda: restore(remote.trial, scratch, experiment.digests(), everything=rank == 0))
    open_again(scratch, experiment.training.steps)
    pusher = Pusher(remote, scratch) if rank == 0 else None

    def push(step: int) -> None:
        try:
            if pusher:
                pusher.push()
        except OSError as error:
            raise TrainingStopped(
                f"step {step}: {error}. Resume when the storage is reachable, and training continues from there."
            ) from error
        except (Overtaken, UserError) as error:
            raise TrainingStopped(f"step {step}: {error}") from error
        except Exception as error:  # all workers stop, rather than wait for this one
            raise TrainingStopped(
                f"step {step}: uploads to the storage have stopped ({error!r}). Resume, and training "
                "continues from what the storage has."
            ) from error

    try:
        with naming_missing_ranks(remote.marks):
            train(scratch, push)
    except TrainingStopped as error:
        if pusher:
            with contextlib.suppress(Exception):  # why training stopped is what counts
                pusher.close()
        place = remote.trial.files / scratch.evidence.name
        if _put_all(scratch.evidence, place):
            raise TrainingStopped(f"{error}. A copy is in {place}") from error
        raise
    if pusher:
        try:
            pusher.close()
        except Overtaken as error:
            raise TrainingStopped(str(error)) from error
    shutil.rmtree(scratch.root)
    for above in (scratch.root.parent, scratch.root.parent.parent):
        with contextlib.suppress(OSError):  # other workers may still be in it
            above.rmdir()


def _remove_before(attempt: Path) -> None:
    """Removes what workers of earlier attempts have left here."""
    for path in attempt.parent.glob("attempt-*"):
        if path.name < attempt.name:
            shutil.rmtree(path, ignore_errors=True)


def restore(remote: RemoteTrial, folder: TrialFolder, digest: Digest, everything: bool) -> None:
    """Makes `folder` anew with what a worker goes on from: metrics, distributions, checkpoints down to a whole one.

    Every file is checked against the index while it is downloaded, and not hashed again. A damaged checkpoint gets a
    note, which `load_newest` passes on.

    Args:
        everything: all that there is: for the worker that goes on writing it.

    Raises:
        UserError: the metrics, or another file that no older one stands in for, are damaged.
        StorageError: the storage is away.
    """
    shutil.rmtree(folder.root, ignore_errors=True)
    folder.root.mkdir(parents=True)
    part, index = remote.newest(remote.attempt())
    try:
        index = part.opened(index, {})
        part.get_metrics(index, folder, {})
        steps = {name for names in checkpoints_in(index).values() for name in names}
        for name in set(index) - steps - set(metrics_in(index)) - set(segments_in(index)) if everything else ():
            part.get(name, index[name], folder)
    except Changed as error:
        raise UserError(f"{error}: it is damaged. Remove {part.index_file} to start this trial anew.") from error
    whole = False
    for step, names in reversed(checkpoints_in(index).items()):
        if not whole or everything:
            checkpoint = folder.checkpoints / step
            try:
                for name in names:
                    part.get(name, index[name], folder)
                state = index.get(f"{folder.checkpoints.name}/{step}/{STATE}")
                if state is not None:
                    note_verified(checkpoint, state.sha256)
            except Changed as error:
                write_whole(checkpoint / DAMAGE, str(error))
            whole = whole or newest_whole(folder.checkpoints, digest) is not None


def _put_all(folder: Path, target: Storage) -> bool:
    """Puts every file under `folder`; False when there is none, or the storage does not take them."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    try:
        for path in paths:
            (target / path.relative_to(folder).as_posix()).upload(path)
    except (StorageError, FileNotFoundError):
        return False
    return bool(paths)
