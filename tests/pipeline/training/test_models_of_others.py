"""Models that nobody here wrote: tied parameters, dropout and counts are saved, resumed and judged as they should."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pipeline import measures
from pipeline.data.manifest import Prepared
from pipeline.data.shards import read_rows
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import Experiment, replace
from pipeline.tasks.arc import ARC
from pipeline.tasks.check import check_model
from pipeline.training.build import build_model
from pipeline.training.checkpoint import checkpoints, read_checkpoint
from pipeline.training.evaluate import evaluate
from pipeline.training.kept import open_step
from pipeline.training.modes import in_evaluation_mode, seed_step
from pipeline.training.stopping import TrainingStopped
from pipeline.training.tied import with_ties, without_ties
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_data, small_experiment

CPU = torch.device("cpu")


def of_others(**training: object) -> Experiment:
    return replace(small_experiment(**training), {"model.build": "tests.pipeline.tasks.own:tied"}, "test")


def run(folder: Path, experiment: Experiment, data: Prepared, stopped: int = 0) -> TrialFolder:
    trial = TrialFolder(folder)
    trial.root.mkdir(exist_ok=True)
    trial.config.write_text(experiment.model_dump_json())

    def stop(step: int) -> None:
        if step == stopped:
            raise TrainingStopped("here")

    if stopped:
        with pytest.raises(TrainingStopped, match="here"):
            run_training(experiment, trial, Path(str(data.folder)), CPU, on_log=stop)
    run_training(experiment, trial, Path(str(data.folder)), CPU)
    return trial


def metrics_of(trial: TrialFolder) -> dict[int, dict[str, float]]:
    lines = {line.step: line.metrics for line in read_spool(trial.spool)[0]}
    return {step: {n: v for n, v in each.items() if not n.startswith("speed/")} for step, each in lines.items()}


def last_state(trial: TrialFolder) -> bytes:
    return (checkpoints(trial.checkpoints)[-1] / "state.safetensors").read_bytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    check_model(of_others())
    return run(tmp_path_factory.mktemp("whole"), of_others(), data)


def test_what_is_tied_is_saved_once_and_tied_again(whole: TrialFolder) -> None:
    _, state = read_checkpoint(checkpoints(whole.checkpoints)[-1])
    assert "model/embed.weight" in state
    assert "model/head.weight" not in state
    models = [open_step(whole, step, own_code=True).model for step in ("last", 6)]  # type: ignore[arg-type]
    for model in models:
        assert model.head.weight is model.embed.weight
    assert torch.equal(models[0].embed.weight, state["model/embed.weight"].to(models[0].embed.weight))
    assert not torch.equal(models[0].embed.weight, models[1].embed.weight)


def test_a_run_with_dropout_resumes_bit_for_bit_and_depends_on_its_seed(
    data: Prepared, whole: TrialFolder, tmp_path: Path
) -> None:
    torch.rand(7)  # whatever was drawn before
    resumed = run(tmp_path / "resumed", of_others(), data, stopped=4)
    assert metrics_of(resumed) == metrics_of(whole)
    assert last_state(resumed) == last_state(whole)
    hooks = run(tmp_path / "hooks", of_others(engine="hooks"), data)
    for step, metrics in metrics_of(whole).items():
        assert metrics_of(hooks)[step][measures.TASK_LOSS] == pytest.approx(metrics[measures.TASK_LOSS], rel=1e-9)
    for one, other in ((0, 1), (0, 2)):
        draws = []
        for rank in (one, other):
            seed_step(3, 5, rank)
            draws.append(torch.rand(4))
        assert not torch.equal(*draws)


def test_a_model_is_judged_without_dropout_and_left_in_the_modes_it_had(data: Prepared, whole: TrialFolder) -> None:
    model = open_step(whole, "last", own_code=True).model
    rows = read_rows(data, "held_out")
    expected = evaluate(model.eval(), rows, 512, 0, 1, task=ARC)
    assert metrics_of(whole)[8][measures.HELD_OUT_LOSS] == expected[measures.HELD_OUT_LOSS]
    model.train()
    model.frozen.eval()
    before = int(model.passes)
    assert evaluate(model, rows, 512, 0, 1, task=ARC) == expected
    assert int(model.passes) == before == 8  # the steps, and no evaluation
    assert model.training
    assert model.drop.training
    assert not model.frozen.training
    with pytest.raises(KeyError), in_evaluation_mode(model):
        raise KeyError
    assert model.drop.training


def test_ties_by_hand() -> None:
    whole = torch.arange(6.0)
    state = {"a": whole, "b": whole, "c": whole[2:], "d": torch.zeros(0), "e": torch.zeros(0), "f": torch.ones(1)}
    untied = without_ties(state)
    assert list(untied) == ["a", "c", "d", "e", "f"]
    assert untied["c"].untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    kept = without_ties(model.state_dict())
    assert list(kept) == ["0.weight", "0.bias", "1.bias"]
    assert with_ties(kept, model)["1.weight"] is kept["0.weight"]
    assert "1.weight" not in with_ties(kept, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))  # and is missed, then


def worker(rank: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for engine in ("hooks", "fused"):
        experiment = replace(of_others(engine=engine, micro_batches=2), {"workers.count": 2}, "test")
        run_training(experiment, TrialFolder(Path(folder) / engine), Path(data), CPU)
    dist.destroy_process_group()
    os._exit(0)


def test_two_workers_train_a_model_with_parameters_that_are_tied_and_unused(data: Prepared, tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path), str(data.folder)), nprocs=2)
    hooks, fused = (metrics_of(TrialFolder(tmp_path / engine)) for engine in ("hooks", "fused"))
    assert {step: each[measures.TASK_LOSS] for step, each in hooks.items()} == pytest.approx(
        {step: each[measures.TASK_LOSS] for step, each in fused.items()}, rel=1e-9
    )
    start = build_model(of_others()).state_dict()
    _, state = read_checkpoint(checkpoints(tmp_path / "fused" / "checkpoints")[-1])
    for name, before in start.items():
        unused = name.startswith("unused")
        assert torch.equal(state.get(f"model/{name}", before), before) == (unused or name == "head.weight"), name


def test_weights_that_a_model_does_not_tie_are_missed(whole: TrialFolder) -> None:
    _, state = read_checkpoint(checkpoints(whole.checkpoints)[-1])
    own = {name.removeprefix("model/"): tensor for name, tensor in state.items() if name.startswith("model/")}
    loose = build_model(replace(of_others(), {"model.build": "tests.pipeline.tasks.own:build"}, "test"))
    with pytest.raises(RuntimeError, match="Missing key"):
        loose.load_state_dict(with_ties(own, loose))
