"""What Ray Train starts in every worker of a trial."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.attempts import last_attempt
from pipeline.remote.trial import RemoteTrial
from pipeline.remote.worker import OnLog, train_remotely
from pipeline.settings.config import Experiment
from pipeline.settings.user_code import code_digest, user_code
from pipeline.storage.opening import located, open_storage
from pipeline.training.missing_ranks import naming_missing_ranks
from pipeline.training.stopping import TrainingStopped
from pipeline.training.worker import run_training
from tiny_onn.torch_private import compile_in_this_process


def train_fn_per_worker(settings: dict[str, Any]) -> None:
    """Ray Train's entry: {"experiment": JSON, "folder": path, "data": place, "attempt": int, "trials": URI or None,
    "user_code": the digest of the user's own code}."""
    import ray.train.torch

    experiment = Experiment.model_validate_json(settings["experiment"])
    _check_user_code(experiment, settings.get("user_code"))
    compile_in_this_process()
    if experiment.workers.gpus == 0:
        torch.set_num_threads(max(1, math.floor(experiment.workers.cpus)))
    folder, attempt = TrialFolder(Path(settings["folder"])), settings["attempt"]
    data = located(settings["data"])
    device = ray.train.torch.get_device() if experiment.workers.gpus else torch.device("cpu")

    def check_ours() -> None:
        now = last_attempt(folder)
        if now and now.number != attempt:
            raise TrainingStopped(f"attempt {attempt} has been overtaken: attempt {now.number} is at work")

    if settings["trials"] is None:
        with naming_missing_ranks(open_storage(str(folder.ray / f"absent-{attempt:03d}"))):
            run_training(experiment, folder, data, device, check_ours=check_ours)
    else:
        remote = RemoteTrial(open_storage(settings["trials"]), folder.root.name).part(attempt)

        def train(scratch: TrialFolder, push: OnLog) -> None:
            run_training(experiment, scratch, data, device, push)

        train_remotely(experiment, remote, folder, dist.get_rank(), train)


def _check_user_code(experiment: Experiment, expected: str | None) -> None:
    """Trials of one sweep are trained with one code: it may have been edited since, or be another on this machine."""
    found = user_code(experiment)
    if expected is not None and code_digest(found) != expected:
        raise UserError(
            f"your own code ({', '.join(found) or 'not found'}) is another here than when the command began. Put it "
            "back, or on this machine the same as on the others, and resume; or resume with --accept-changed-code."
        )
