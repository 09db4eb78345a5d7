"""How often two workers speak to each other for a log entry, and what they agree on."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.data.shards import prepare
from pipeline.layout import TrialFolder
from pipeline.settings.config import Experiment
from pipeline.settings.experiment_file import validate_experiment
from pipeline.training.agreement import is_to_end
from pipeline.training.stopping import TrainingStopped
from pipeline.training.worker import run_training
from tests.pipeline.samples import SMALL

CPU = torch.device("cpu")
COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier")


def experiment(log_every: int) -> Experiment:
    once = {"evaluate_every": 8, "checkpoint_every": 8, "decode_tasks": 0, "prototype_snapshots": 0}
    training = {**SMALL["training"], **once, "batch_tokens": 1024, "check_replicas_every": 0}  # type: ignore[dict-item]
    data = {"max_tokens": 256, "dihedral_views": 2, "rows_per_group": 4}
    changed = {**SMALL, "data": data, "training": {**training, "log_every": log_every}, "workers": {"count": 2}}
    return validate_experiment(changed, "test")


def worker(rank: int, root: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    said = {
        "nothing": is_to_end(None, False, CPU),
        "rank 1 prunes": is_to_end(None, rank == 1, CPU),
        "stopped": "",
    }
    try:
        is_to_end(TrainingStopped("the disk is full") if rank == 1 else None, False, CPU)
    except TrainingStopped as error:
        said["stopped"] = str(error)
    seen: Counter[str] = Counter()

    def counted(name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            seen[name] += 1
            return real(*arguments, **options)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counted(name, getattr(dist, name)))
    counts = []
    for every in (8, 2):  # one log entry, and four
        seen.clear()
        run_training(experiment(every), TrialFolder(Path(root) / f"every-{every}"), Path(data), CPU)
        counts.append(dict(seen))
    torch.save((said, counts), Path(root) / f"seen-{rank}.pt")
    dist.destroy_process_group()  # a process that ends with it may abort


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    root = tmp_path_factory.mktemp("two")
    data = prepare(experiment(2).data, root / "data").folder
    mp.spawn(worker, (str(root), str(data)), nprocs=2)
    return [torch.load(root / f"seen-{rank}.pt") for rank in range(2)]


def test_a_log_entry_takes_one_gather_and_one_sum_of_routing_health(seen: list[Any]) -> None:
    for _, (one, four) in seen:
        more = {name: four.get(name, 0) - one.get(name, 0) for name in four}
        assert more == {"all_gather": 3 * 1, "all_reduce": 3 * 1}


def test_what_one_worker_says_all_hear(seen: list[Any]) -> None:
    expected = {"nothing": False, "rank 1 prunes": True, "stopped": "the disk is full"}
    assert [said for said, _ in seen] == [expected, expected]
