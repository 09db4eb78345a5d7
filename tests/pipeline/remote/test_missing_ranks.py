"""A worker that stands still while its trial lies in an object store: two gloo processes, one waits in vain."""

import datetime
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.layout import TrialFolder
from pipeline.remote.index import checkpoints_in
from pipeline.remote.trial import RemoteTrial
from pipeline.remote.worker import OnLog, train_remotely
from pipeline.storage.opening import open_storage
from pipeline.training.missing_ranks import _marked
from pipeline.training.stopping import MissingRanks
from pipeline.training.worker import run_training
from tests.pipeline.object_store import object_store
from tests.pipeline.samples import small_data, small_experiment

CPU = torch.device("cpu")


def worker(rank: int, root: Path, data: Path, uri: str) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=5)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2, timeout=limit)
    experiment, told = small_experiment(), root / "told"

    def stand_still(step: int) -> None:
        deadline = time.monotonic() + 60
        while rank == 1 and step == 4 and not told.exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def train(scratch: TrialFolder, push: OnLog) -> None:
        def on_log(step: int) -> None:
            push(step)
            stand_still(step)

        run_training(experiment, scratch, data, CPU, on_log)

    remote = RemoteTrial(open_storage(uri), "per_token-s0").part(1)
    try:
        train_remotely(experiment, remote, TrialFolder(root / "trial"), rank, train)
    except MissingRanks as absent:
        if rank == 0:
            told.write_text(str(absent))
    os._exit(0)  # the group is of no use any more, and would be waited for


def test_a_worker_that_stands_still_is_named(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data").folder
    with object_store() as store:
        trials = store.storage() / "trials"
        RemoteTrial(trials, "per_token-s0").put_attempt(1, "now")
        mp.spawn(worker, (tmp_path, data, trials.uri), nprocs=2)
        assert (tmp_path / "told").read_text().startswith("rank 1 did not arrive where the others waited (")
        assert list(checkpoints_in(RemoteTrial(trials, "per_token-s0").index()))[-1] in ("step-000002", "step-000004")


def test_marks_of_other_names_are_left_out(tmp_path: Path) -> None:
    marks = open_storage(str(tmp_path))
    for name in ("rank-0", "rank-12", "rank-x", "rank-", "rank-1.txt", "rank--3", "other"):
        (tmp_path / name).touch()
    assert _marked(marks) == {0, 12}
