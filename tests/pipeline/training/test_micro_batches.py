"""training.micro_batches: a step in several parts is the step of the whole batch, but for rounding, in float64."""

import os
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline import measures
from pipeline.data.batch import Batch
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.data.shards import open_prepared
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.training.build import build_dynamics, build_model, set_learning_rates
from pipeline.training.step import parts_of, train_step
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_data, small_experiment
from tiny_onn.distributed import distribute

STEPS = 4
CHECKPOINTING = (None, False, True)  # of activations: none, without re-entering autograd, and with
SAMPLED = "rank_correlation"  # of some tokens of each call
ARMS = (("hooks", "per_token"), ("fused", "per_token"), ("hooks", "aggregated"), ("fused", "remoe"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch, with its width."""
    axes = tuple(axis[rows] for axis in batch.coordinates)
    return Batch(batch.tokens[rows], axes, batch.labels[rows], batch.valid[rows], batch.task_ids[rows])


def checkpointed(block: nn.Module, reentrant: bool) -> None:
    """Has a block's activations computed anew in the backward pass."""
    forward = block.forward
    block.forward = partial(checkpoint, forward, use_reentrant=reentrant)  # type: ignore[method-assign]


def trained(
    folder: Path, engine: str, arm: str, micro_batches: int, reentrant: bool | None, rank: int | None = None
) -> dict[str, torch.Tensor]:
    """The model, and each step's losses and norm, after some steps of the same batches, of at least 5 rows.

    `rank`: of two workers with unequal shares, of which the first has one row alone.
    """
    density = {"density": 0.3} if arm == "remoe" else {}
    experiment = small_experiment(engine=engine, arm=arm, batch_tokens=1024)
    experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update=density)})
    model = build_model(experiment)
    dynamics = build_dynamics(model, experiment.training)
    if reentrant is not None:
        for block in model.blocks:
            checkpointed(block, reentrant)
    wrapped = distribute(model, router_in_backward=dynamics.router_in_backward)
    stream = Loader(open_prepared(folder, "arc"), "train", 1024, 0).stream()
    batches = islice((batch for _, batch in stream if len(batch.valid) >= 5), STEPS)
    seen = []
    for step, batch in enumerate(batches):
        set_learning_rates(dynamics, experiment.training, step)
        share = batch if rank is None else rows_of(batch, (slice(0, 1), slice(1, None))[rank])
        report = train_step(wrapped, share, dynamics, observe=step % 2 == 1, micro_batches=micro_batches)
        losses = report.dynamics
        seen += [torch.stack([losses.task_loss, losses.meta_loss, losses.gradient_norm])]
        for health in (losses.health or {}).values():
            values = {n: v for n, v in health.measures().items() if not n.startswith(SAMPLED)}
            seen.append(torch.tensor(list(values.values()), dtype=torch.float64))
    assert len(seen) >= STEPS
    return {**{n: t.detach().clone() for n, t in model.state_dict().items()}, "seen": torch.cat(seen)}


def assert_equal(actual: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    """In float64; sums in another order, over a few steps of Adam."""
    assert actual.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-10, equal_nan=True, msg=name)


@pytest.mark.parametrize(("engine", "arm"), ARMS)
def test_micro_batches_are_one_batch(engine: str, arm: str, data: Prepared) -> None:
    """With and without activation checkpointing; 100 are more than there are rows."""
    truth = trained(data.folder, engine, arm, 1, None)
    for micro_batches, reentrant in ((2, None), (3, False), (100, True), (3, True), (100, None)):
        assert_equal(trained(data.folder, engine, arm, micro_batches, reentrant), truth)


def worker(rank: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        gradients_by_case = {
            f"{engine} {arm} {reentrant}": trained(Path(data), engine, arm, 3, reentrant, rank)
            for engine, arm in ARMS
            for reentrant in CHECKPOINTING
        }
        torch.save(gradients_by_case, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
    os._exit(0)


def test_micro_batches_of_two_workers_are_one_batch(tmp_path: Path, data: Prepared) -> None:
    """One row on one worker, and so one part; three parts on the other."""
    mp.spawn(worker, args=(str(tmp_path), str(data.folder)), nprocs=2)
    truths = {arm: trained(data.folder, "hooks", arm, 1, None) for arm in dict.fromkeys(arm for _, arm in ARMS)}
    for rank in (0, 1):
        by_case = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(by_case) == len(ARMS) * len(CHECKPOINTING)
        for name, each in by_case.items():
            assert_equal(each, truths[name.split()[1]])


def test_the_whole_run_is_the_same(tmp_path: Path, data: Prepared) -> None:
    """Through settings, loader, logs, evaluation and checkpoints."""
    seen = []
    for number in (1, 3):
        folder = TrialFolder(tmp_path / str(number))
        run_training(small_experiment(micro_batches=number), folder, data.folder, torch.device("cpu"))
        seen.append({line.step: line.metrics for line in read_spool(folder.spool)[0]})
    assert seen[0].keys() == seen[1].keys()
    for step, metrics in seen[0].items():
        for name, value in metrics.items():
            if not name.startswith(("speed/", SAMPLED)):
                assert seen[1][step][name] == pytest.approx(value, rel=1e-7, abs=1e-9, nan_ok=True), name
    assert measures.HELD_OUT_LOSS in seen[0][8]


def test_parts_are_whole_rows_of_nearly_equal_number(data: Prepared) -> None:
    batch = max(Loader(data, "train", 1024, 0).batches(0), key=lambda each: len(each.valid))
    rows = len(batch.valid)
    assert rows >= 7
    for number in (1, 2, 3, 7, rows, rows + 2):
        parts = parts_of(batch, number)
        sizes = [len(part.valid) for part in parts]
        assert len(parts) == min(number, rows)
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        assert sum((part.task_ids for part in parts), ()) == batch.task_ids
