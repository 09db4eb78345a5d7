"""One attempt of a trial in a storage, in this process; and what is seen of it."""

import time

import torch

from pipeline.records.spool import read_spool
from pipeline.remote.index import checkpoints_in
from pipeline.remote.sweep import take_in
from pipeline.remote.worker import restore, train_remotely
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_experiment

CPU = torch.device("cpu")


def run_attempt(remote, folder, data, report=lambda step: None, attempt=1):
    """As one attempt of the trial `remote`, in the trial's folder `folder`."""
    experiment = small_experiment()

    def train(scratch, push):
        def on_log(step):
            push(step)
            report(step)

        run_training(experiment, scratch, data.folder, CPU, on_log)

    remote.put_attempt(attempt, "now")
    train_remotely(experiment, remote.part(attempt), folder, 0, train)


def taken_in(remote, folder, have=None):
    part, index = remote.newest(remote.attempt())
    take_in(part, folder, index, have or {})
    return index


def until_put(remote, step):
    deadline = time.monotonic() + 300
    while f"step-{step:06d}" not in checkpoints_in(remote.index()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def die_at(step, remote):
    def report(done):
        if done == step:
            until_put(remote, step)
            raise KeyboardInterrupt

    return report


def state_at(remote, folder, step):
    restore(remote, folder, small_experiment().digest(), everything=True)
    return (folder.checkpoints / f"step-{step:06d}" / "state.safetensors").read_bytes()


def without_speed(folder):
    return [
        (line.step, {name: value for name, value in line.metrics.items() if not name.startswith("speed/")})
        for line in read_spool(folder.spool)[0]
    ]
