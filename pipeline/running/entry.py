"""What Ray Train starts in every worker of a trial."""

import math

import torch
import torch.distributed as dist

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.attempts import last_attempt
from pipeline.remote.worker import OnLog, train_remotely
from pipeline.running.trial_spec import TrialSpec
from pipeline.settings.config import Experiment
from pipeline.settings.user_code import code_digest, user_code
from pipeline.storage.opening import located, open_storage
from pipeline.training.missing_ranks import naming_missing_ranks
from pipeline.training.rendezvous import device_of_worker
from pipeline.training.stopping import TrainingStopped
from pipeline.training.worker import run_training
from tiny_onn.torch_private import compile_in_this_process


def train_fn_per_worker(spec: TrialSpec) -> None:
    """Trains a trial, as one of its workers."""
    experiment, folder, attempt = spec.experiment, spec.folder, spec.attempt
    _check_user_code(experiment, spec.user_code)
    compile_in_this_process()
    if experiment.workers.gpus == 0:
        torch.set_num_threads(max(1, math.floor(experiment.workers.cpus)))
    data = located(spec.data)
    device = device_of_worker() if experiment.workers.gpus else torch.device("cpu")

    def check_ours() -> None:
        now = last_attempt(folder)
        if now and now.number != attempt:
            raise TrainingStopped(f"attempt {attempt} has been overtaken: attempt {now.number} is at work")

    remote = spec.remote
    if remote is None:
        with naming_missing_ranks(open_storage(str(folder.ray / f"absent-{attempt:03d}"))):
            run_training(experiment, folder, data, device, check_ours=check_ours)
    else:

        def train(scratch: TrialFolder, push: OnLog) -> None:
            run_training(experiment, scratch, data, device, push)

        train_remotely(experiment, remote.part(attempt), folder, dist.get_rank(), train)


def _check_user_code(experiment: Experiment, expected: str | None) -> None:
    """Trials of one sweep are trained with one code: it may have been edited since, or be another on this machine."""
    code = user_code(experiment)
    if expected is not None and code_digest(code) != expected:
        raise UserError(
            f"your own code ({', '.join(code) or 'not found'}) differs from the code at the command's start. Restore "
            "it, or install the same code on this machine as on the others, and resume; or resume with "
            "--accept-changed-code."
        )
