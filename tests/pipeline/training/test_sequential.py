"""Training task after task: forgetting by hand and by a slow twin, two workers as one, and resumed bit for bit."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from pipeline import measures
from pipeline.data.batch import IGNORED
from pipeline.data.manifest import Prepared
from pipeline.data.sequential import SequentialLoader, open_loader
from pipeline.data.shards import open_prepared
from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import Experiment, replace
from pipeline.settings.growth import growth
from pipeline.settings.trials import trials_of
from pipeline.tasks.arc import ARC
from pipeline.training.build import build_dynamics, build_model, set_learning_rates
from pipeline.training.checkpoint import checkpoints, load_newest, read_checkpoint, save_checkpoint
from pipeline.training.evaluate import evaluate
from pipeline.training.forgetting import Forgetting, sampled_tasks
from pipeline.training.kept import model_of
from pipeline.training.step import train_step
from pipeline.training.stopping import TrainingStopped
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_data, small_experiment
from tests.pipeline.training.test_other_workers import together

CPU = torch.device("cpu")
STEPS, TASKS = 17, 5  # the tasks end at 3, 6, 10, 13 and 17
ENDS = [3, 6, 10, 13, 17]


def sequential(workers: int = 1, **training: object) -> Experiment:
    every = {"steps": STEPS, "evaluate_every": 5, "checkpoint_every": 4, "log_every": 4, "keep_checkpoints": 20}
    changes = {"data.order": "sequential", "workers.count": workers}
    return replace(small_experiment(**{**every, **training}), changes, "test")


def loader_of(experiment: Experiment, data: Prepared, rank: int = 0, world_size: int = 1) -> SequentialLoader:
    loader = open_loader(experiment, data, rank, world_size)
    assert isinstance(loader, SequentialLoader)
    return loader


def metrics_of(folder: TrialFolder) -> dict[int, dict[str, float]]:
    lines = {line.step: line.metrics for line in read_spool(folder.spool)[0]}
    return {step: {n: v for n, v in each.items() if not n.startswith("speed/")} for step, each in lines.items()}


def forgot(folder: TrialFolder) -> dict[int, tuple[float, float]]:
    names = (measures.FORGETTING_LOSS, measures.FORGETTING_INCREASE)
    return {
        step: (metrics[names[0]], metrics[names[1]])
        for step, metrics in metrics_of(folder).items()
        if names[0] in metrics
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    folder = TrialFolder(tmp_path_factory.mktemp("whole"))
    run_training(sequential(checkpoint_every=1), folder, data.folder, CPU)
    return folder


class Same(nn.Module):
    """The same logits at every token."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(outputs, dtype=torch.float64))

    def forward(self, tokens: Tensor, *coordinates: Tensor) -> Tensor:
        return self.logits.expand(*tokens.shape, -1)


def test_forgetting_worked_by_hand(data: Prepared) -> None:
    loader = loader_of(sequential(), data)
    assert loader.ends == ENDS
    forgetting, model = Forgetting(loader, False), Same(loader.task.format.outputs)
    outputs = loader.task.format.outputs
    for step in range(1, 4):
        assert forgetting.metrics(model, step) == {}
        forgetting.after(model, step)
    # At step 3 all logits were 0: the first task's loss was log(outputs). Now token 0 is e times as likely as others.
    model.logits.data[0] = 1.0
    (first,) = loader.sample({0: 100}).values()
    batch = loader.task.batch(first)
    labels = batch.labels[batch.labels != IGNORED]
    share = float((labels == 0).double().mean())
    now = math.log(math.e + outputs - 1) - share
    measured = forgetting.metrics(model, 4)
    assert measured == pytest.approx(
        {measures.FORGETTING_LOSS: now, measures.FORGETTING_INCREASE: now - math.log(outputs)}, rel=1e-12
    )
    forgetting.after(model, 6)  # the second task ends with the loss that it has now, and so is not forgotten at all
    increase = forgetting.metrics(model, 7)[measures.FORGETTING_INCREASE]
    assert increase == pytest.approx((now - math.log(outputs)) / 2, rel=1e-12)


def test_the_sample_is_spread_over_the_earlier_tasks() -> None:
    assert sampled_tasks(2) == {0: 128}
    assert sampled_tasks(5) == dict.fromkeys(range(4), 32)
    many = sampled_tasks(1001)
    assert len(many) == 64
    assert {*many.values()} == {2}
    assert list(many)[:2] == [0, 15]
    assert max(many) < 1000


def test_forgetting_is_the_growth_of_the_loss_since_each_tasks_end(data: Prepared, whole: TrialFolder) -> None:
    """By a slow twin: the models of all steps are loaded, and evaluated on one task at a time."""
    experiment = sequential(checkpoint_every=1)
    loader, model = loader_of(experiment, data), build_model(experiment)
    sample = loader.sample(dict.fromkeys(range(TASKS), 1000))
    saved = {int(path.name[5:]): path for path in checkpoints(whole.checkpoints)}

    def loss(step: int, number: int) -> float:
        model.load_state_dict(model_of(read_checkpoint(saved[step])[1]))
        return evaluate(model, sample[number], 1000, 0, 1, task=ARC)[measures.HELD_OUT_LOSS]

    by_step = forgot(whole)
    assert list(by_step) == [5, 10, 15, 17]
    for step, (now, increase) in by_step.items():
        earlier = [number for number, end in enumerate(ENDS) if end < step]
        losses = [loss(step, number) for number in earlier]
        grown = [loss(step, number) - loss(ENDS[number], number) for number in earlier]
        assert now == pytest.approx(sum(losses) / len(losses), rel=1e-10)
        assert increase == pytest.approx(sum(grown) / len(grown), rel=1e-8, abs=1e-12)
    tasks = {step: each[measures.TASK_NUMBER] for step, each in metrics_of(whole).items()}
    assert [tasks[step] for step in (3, 4, 10, 11, 17)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("engine", "micro_batches", "stopped"), [("fused", 1, 12), ("hooks", 2, 8), ("fused", 2, 4), ("fused", 1, 16)]
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    data: Prepared, tmp_path: Path, engine: str, micro_batches: int, stopped: int
) -> None:
    experiment = sequential(engine=engine, micro_batches=micro_batches)
    once, twice = TrialFolder(tmp_path / "once"), TrialFolder(tmp_path / "twice")
    run_training(experiment, once, data.folder, CPU)

    def stop(step: int) -> None:
        if step == stopped:
            raise TrainingStopped("here")

    with pytest.raises(TrainingStopped, match="here"):
        run_training(experiment, twice, data.folder, CPU, on_log=stop)
    run_training(experiment, twice, data.folder, CPU)
    assert metrics_of(once) == metrics_of(twice)
    assert forgot(once)
    ends = [read_checkpoint(checkpoints(folder.checkpoints)[-1])[1] for folder in (once, twice)]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(value.nan_to_num(7.0), ends[1][name].nan_to_num(7.0)), name


def worker(rank: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    run_training(sequential(2), TrialFolder(Path(folder) / "trial"), Path(data), CPU)
    dist.destroy_process_group()
    os._exit(0)


def test_two_workers_train_and_forget_as_one_that_takes_both_shares(data: Prepared, tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path), str(data.folder)), nprocs=2)
    experiment = sequential(2)
    dynamics = build_dynamics(build_model(experiment), experiment.training)
    prepared = open_prepared(data.folder, "arc")
    streams = [loader_of(experiment, prepared, rank, 2).stream() for rank in (0, 1)]
    forgetting = Forgetting(loader_of(experiment, prepared), False)
    expected: dict[int, dict[str, float]] = {}
    for step in range(1, STEPS + 1):
        set_learning_rates(dynamics, experiment.training, step - 1)
        train_step(dynamics.model, together([next(stream)[1] for stream in streams]), dynamics)
        forgetting.after(dynamics.model, step)
        expected[step] = forgetting.metrics(dynamics.model, step)
    folder = TrialFolder(tmp_path / "trial")
    actual = metrics_of(folder)
    for step in (5, 10, 15, 17):
        assert {n: actual[step][n] for n in expected[step]} == pytest.approx(expected[step], rel=1e-7, abs=1e-9)
        assert expected[step]
    _, state = read_checkpoint(checkpoints(folder.checkpoints)[-1], experiment.digest())
    for name, value in dynamics.model.state_dict().items():
        torch.testing.assert_close(state[f"model/{name}"], value, rtol=1e-8, atol=1e-10, msg=name)


def test_a_checkpoint_without_the_losses_of_then_is_no_good(data: Prepared, whole: TrialFolder, tmp_path: Path) -> None:
    experiment = sequential(checkpoint_every=1)
    digest = experiment.digest()
    dynamics = build_dynamics(build_model(experiment), experiment.training)
    for step in (4, 5):
        shutil.copytree(whole.checkpoints / f"step-{step:06d}", tmp_path / f"step-{step:06d}")
    save_checkpoint(tmp_path, 6, dynamics, digest, keep=3)
    forgetting = Forgetting(loader_of(experiment, data), False)
    step, problems = load_newest(tmp_path, dynamics, digest, forgetting.take)
    assert step == 5
    assert problems == ["the checkpoint does not hold the losses on the tasks that were finished before it"]


def test_a_task_finished_before_a_resume_keeps_its_loss_and_later_ones_have_none(
    data: Prepared, whole: TrialFolder
) -> None:
    experiment = sequential(checkpoint_every=1)
    forgetting = Forgetting(loader_of(experiment, data), False)
    _, state = read_checkpoint(whole.checkpoints / "step-000009")
    kept: dict[str, Any] = {name.removeprefix("beside/"): t for name, t in state.items() if name.startswith("beside/")}
    forgetting.take(9, kept)
    assert forgetting.state()["losses_when_finished"].isnan().tolist() == [False, False, True, True]


def test_the_orders_are_compared_in_one_sweep_and_steps_cannot_be_added() -> None:
    sweep = {"arms": ["task_only"], "seeds": [0], "grid": {"data.order": ["mixed", "sequential"]}}
    both = replace(small_experiment(steps=STEPS, schedule="constant"), {"sweep": sweep}, "test")
    assert [trial.experiment.data.order for trial in trials_of(both)] == ["mixed", "sequential"]
    longer = replace(both, {"training.steps": 20}, "test")
    assert "data.order=sequential every task has an equal share" in growth(both, longer).problems[0]
    with pytest.raises(UserError, match=r"'data.seed' cannot differ"):
        trials_of(replace(both, {"sweep.grid": {"data.seed": [0, 1]}}, "test"))
