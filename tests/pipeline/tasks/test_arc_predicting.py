"""Two gloo processes that decode longer than one may wait for the other in a collective operation."""

import datetime
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.data import tokens
from pipeline.data.shards import open_prepared, read_rows
from pipeline.layout import TrialFolder
from pipeline.settings.config import Experiment
from pipeline.settings.experiment_file import validate_experiment
from pipeline.tasks import arc_decode as decode
from pipeline.tasks.arc_predictions import exact_match, predict
from pipeline.training.model_file import open_model
from pipeline.training.worker import run_training
from tests.pipeline.samples import SMALL, small_data

LIMIT_S = 5
PAUSE_S = 0.3  # before a token


def experiment() -> Experiment:
    training = {"steps": 2, "warmup_steps": 1, "decode_tasks": 3, "prototype_snapshots": 0}
    values = {**SMALL, "training": {**SMALL["training"], **training}, "workers": {"count": 2}}  # type: ignore[dict-item]
    return validate_experiment(values, "test")


def worker(rank: int, root: Path, data: Path) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=LIMIT_S)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2, timeout=limit)
    began, advance = time.monotonic(), tokens.advance

    def slowly(*arguments: Any) -> Any:
        if rank == 0 and time.monotonic() - began < 2 * LIMIT_S:
            time.sleep(PAUSE_S)
        return advance(*arguments)

    tokens.advance = slowly
    decode.MayBeGrid = lambda: lambda token, row, column: token >= 0  # type: ignore[misc, assignment]
    run_training(experiment(), TrialFolder(root / "trial"), data, torch.device("cpu"))
    (root / f"took-{rank}").write_text(str(time.monotonic() - began))
    dist.destroy_process_group()


def test_workers_share_the_decoding_and_wait_for_the_slowest(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data").folder
    assert isinstance(data, Path)
    mp.spawn(worker, (tmp_path, data), nprocs=2)
    assert float((tmp_path / "took-1").read_text()) > 1.5 * LIMIT_S  # rank 0 was waited for
    folder = TrialFolder(tmp_path / "trial")
    rows = read_rows(open_prepared(data, "arc"), "held_out")
    tasks = list(dict.fromkeys(row.task_id for row in rows))[:3]
    asked = [row for row in rows if row.task_id in tasks]
    alone = predict(open_model(folder.model).model, asked, 128, views=2)
    assert json.loads(folder.predictions.read_text()) == [each.as_dict() for each in alone]
    metrics = json.loads(folder.result.read_text())["metrics"]
    assert metrics["held_out/tasks_exact"] == exact_match(alone)["tasks_exact"]
