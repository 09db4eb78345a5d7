"""A trial that is resumed with another number of workers: the state goes on, the data are shared out anew."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import pad

from pipeline.data.batch import IGNORED, Batch
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.data.shards import open_prepared
from pipeline.data.tokens import PAD
from pipeline.errors import UserError
from pipeline.layout import Output, TrialFolder
from pipeline.records.sweep_record import grown
from pipeline.reporting.report import make_report
from pipeline.running.claim import claim
from pipeline.running.provenance import note_attempt
from pipeline.settings.config import Experiment, replace
from pipeline.settings.growth import growth
from pipeline.tracking.tracker import Tracker
from pipeline.training.build import build_dynamics, build_model, set_learning_rates
from pipeline.training.checkpoint import checkpoints, load_newest, read_checkpoint
from pipeline.training.step import train_step
from pipeline.training.stopping import TrainingStopped
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_data, small_experiment
from tests.pipeline.sweep_samples import EXTRA, experiment, trials, write_spool

CPU = torch.device("cpu")
COMMAND = "tiny-onn ablate toy.yaml"


def with_workers(count: int, whole: Experiment | None = None) -> Experiment:
    return replace(whole or small_experiment(), {"workers.count": count}, "test")


def roomy(sweep: Experiment) -> Experiment:
    """With batches that can be cut into three."""
    return replace(sweep, {"training.batch_tokens": 256}, "test")


def worker(rank: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    run_training(with_workers(2), TrialFolder(Path(folder) / "trial"), Path(data), CPU)
    dist.destroy_process_group()
    os._exit(0)


def together(parts: list[Batch]) -> Batch:
    """The workers' shares as one batch, as wide as the widest."""
    width = max(part.valid.shape[1] for part in parts)

    def wide(tensors: Iterable[torch.Tensor], fill: int) -> torch.Tensor:
        return torch.cat([pad(each, (0, width - each.shape[1]), value=fill) for each in tensors])

    return Batch(
        tokens=wide((part.tokens for part in parts), PAD),
        coordinates=tuple(wide(axis, 0) for axis in zip(*(part.coordinates for part in parts), strict=True)),
        labels=wide((part.labels for part in parts), IGNORED),
        valid=wide((part.valid for part in parts), False),
        task_ids=sum((part.task_ids for part in parts), ()),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


def test_two_workers_take_up_what_one_began_with_the_batches_of_two(data: Prepared, tmp_path: Path) -> None:
    """Against a slow twin: from the checkpoint on, one process takes both workers' shares as one batch."""

    def stop(step: int) -> None:
        if step == 4:
            raise TrainingStopped("here")

    folder = TrialFolder(tmp_path / "trial")
    with pytest.raises(TrainingStopped, match="here"):
        run_training(with_workers(1), folder, data.folder, CPU, on_log=stop)
    twin = with_workers(2)
    shutil.copytree(folder.checkpoints, tmp_path / "before")
    mp.spawn(worker, args=(str(tmp_path), str(data.folder)), nprocs=2)
    dynamics = build_dynamics(build_model(twin), twin.training)
    assert load_newest(tmp_path / "before", dynamics, twin.digests()) == (4, [])
    streams = [Loader(open_prepared(data.folder, "arc"), "train", 512, 0, rank, 2).stream(4) for rank in (0, 1)]
    for step in range(4, 8):
        set_learning_rates(dynamics, twin.training, step)
        train_step(dynamics.model, together([next(stream)[1] for stream in streams]), dynamics)
    step, state = read_checkpoint(checkpoints(folder.checkpoints)[-1], twin.digest())
    assert step == 8
    for name, value in dynamics.model.state_dict().items():
        torch.testing.assert_close(state[f"model/{name}"], value, rtol=1e-8, atol=1e-10, msg=name)
    assert folder.ended


def test_checkpoints_of_another_experiment_stay_refused(data: Prepared, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    run_training(with_workers(1), folder, data.folder, CPU)
    other = replace(with_workers(2), {"training.learning_rate": 0.5}, "test")
    assert other.digest() == other.digests()[0]
    assert len(set(other.digests())) == len(other.digests()) > 1000
    with pytest.raises(UserError, match=f"belongs to experiment {with_workers(1).digest()}, expected {other.digest()}"):
        load_newest(folder.checkpoints, build_dynamics(build_model(other), other.training), other.digests())


def test_a_sweep_goes_on_with_another_number_and_says_so(tmp_path: Path) -> None:
    before = roomy(experiment(seeds=(0,)))
    now = with_workers(3, before)
    said = "workers.count 3 instead of 1 from here on"
    assert growth(before, now).added == (said,)
    assert growth(before, replace(now, {"sweep.seeds": [0, 1]}, "t")).added == ("seed 1", said)
    claim(tmp_path, before, "aa", False, COMMAND)
    with pytest.raises(UserError, match=r"started before, without workers\.count 3 instead of 1"):
        claim(tmp_path, now, "aa", False, COMMAND)
    claim(tmp_path, now, "aa", True, COMMAND)
    assert grown(tmp_path).endswith(f": {said}")
    with pytest.raises(UserError, match=r"workers\.cpus: there 1\.0, now 0\.5"):
        claim(tmp_path, replace(now, {"workers.cpus": 0.5}, "t"), "aa", True, COMMAND)


def test_the_report_keeps_its_rows_and_names_the_trials_that_were_resumed(tmp_path: Path) -> None:
    """Seed 0 had ended, seed 1 was resumed, seed 2 was begun with more workers; a grid of the setting makes cells."""
    output, sample = Output(tmp_path), roomy(experiment("sample", arms=("per_token", "task_only")))
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    counts = {0: [1], 1: [1, 2], 2: [2]}
    for trial, folder in trials(output, sample):
        write_spool(trial, folder)
        for number, count in enumerate(counts[trial.experiment.training.seed], start=1):
            note_attempt(folder, number, "session", with_workers(count, trial.experiment))
        begun = with_workers(counts[trial.experiment.training.seed][0], trial.experiment)
        delivery = tracker.start_trial(folder, trial.model_copy(update={"experiment": begun}), sample.name, EXTRA)
        tracker.end_trial(delivery, "FINISHED")
    made = make_report(output.tracking_uri, "tests", "sample")
    assert [sorted(row.trials) for row in made.results.rows] == [[0, 1, 2], [0, 1, 2]]
    text = " ".join(made.findings)
    assert "Resumed with another workers.count: per_token s1 (1, then 2), task_only s1 (1, then 2). From" in text
    assert "The trials differ in workers.count (1 or 2)" in text
    grid = roomy(experiment("grid", arms=("per_token",), seeds=(0,), grid={"workers.count": (1, 2)}))
    for trial, folder in trials(output, grid):
        write_spool(trial, folder)
        delivery = tracker.start_trial(folder, trial, "grid", EXTRA)
        tracker.end_trial(delivery, "FINISHED")
    made = make_report(output.tracking_uri, "tests", "grid")
    assert made.results.varying == ["workers.count"]
    assert "Resumed with" not in " ".join(made.findings)
