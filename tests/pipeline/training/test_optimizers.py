"""training.optimizer and training.schedule: known ones by hand, one's own tried before anything starts."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.manifest import Prepared
from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.planning.forecast import kinds_of
from pipeline.planning.preflight import check_start, checkpoint_bytes
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial
from pipeline.training.build import arm_of, build_dynamics, build_model, schedule
from pipeline.training.checkpoint import checkpoints
from pipeline.training.optimizers import optimizer_problem, state_per_parameter
from pipeline.training.stopping import TrainingStopped
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_data, small_experiment
from tiny_onn.layers import computation_parameters, router_parameters

HERE = "tests.pipeline.training.test_optimizers"
CPU = torch.device("cpu")


class Averaging(torch.optim.Optimizer):
    """Goes against the running mean of gradients; its state has a slot that is none of Adam's, and one of no axes."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["count"] = state.get("count", p.new_zeros(())) + 1
                    state["mean"] = state.get("mean", torch.zeros_like(p)).lerp(p.grad, 1 / float(state["count"]))
                    p -= group["lr"] * state["mean"]


class WithNumbers(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["step"] = 3


class Upwards(torch.optim.SGD):
    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, lr=lr, maximize=True)


def no_optimizer(groups: Any, lr: float) -> str:
    return "none"


def needs_a_closure(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.LBFGS([p for group in groups for p in group["params"]], lr=lr)


NUMBER = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


def test_sgd_is_the_formula() -> None:
    """b = 0.9 b + g + decay w; w -= lr b. Weight decay on the matrices of the computation parameters alone."""
    training = small_experiment(optimizer="sgd", learning_rate=0.1, router_learning_rate=0.2, weight_decay=0.5).training
    model = build_model(small_experiment())
    dynamics = build_dynamics(model, training)
    expected, velocity = {}, {}
    names = {id(p): n for n, p in model.named_parameters()}
    for stream, rate, decay in ((computation_parameters(model), 0.1, 0.5), (router_parameters(model), 0.2, 0.0)):
        for p in stream:
            w, b = p.detach().clone(), torch.zeros_like(p)
            for g in (1.0, -2.0):
                b = 0.9 * b + g + (decay if p.ndim >= 2 else 0.0) * w
                w = w - rate * b
            expected[names[id(p)]], velocity[names[id(p)]] = w, b
    for g in (1.0, -2.0):
        for p in model.parameters():
            p.grad = torch.full_like(p, g)
        dynamics.computation_optimizer.step()
        dynamics.router_optimizer.step()
    assert expected.keys() == set(names.values())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["sgd", "torch.optim:RAdam", "torch.optim:Adafactor", f"{HERE}:Averaging"])
def test_a_run_that_stops_goes_on_to_the_same_bytes(optimizer: str, data: Prepared, tmp_path: Path) -> None:
    """Its state is in the checkpoints, whatever its slots are called."""
    experiment = small_experiment(optimizer=optimizer)
    assert optimizer_problem(experiment.training, arm_of(experiment.training)) is None
    whole, parts = TrialFolder(tmp_path / "whole"), TrialFolder(tmp_path / "parts")
    run_training(experiment, whole, data.folder, CPU)

    def stop(step: int) -> None:
        if step == 4:
            raise TrainingStopped("here")

    with pytest.raises(TrainingStopped, match="here"):
        run_training(experiment, parts, data.folder, CPU, on_log=stop)
    run_training(experiment, parts, data.folder, CPU)
    last = [checkpoints(folder.checkpoints)[-1] / "state.safetensors" for folder in (whole, parts)]
    assert last[0].read_bytes() == last[1].read_bytes()


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("nosuch:Adam", "cannot be used .ModuleNotFoundError"),
        ("torch.optim:NoSuch", "cannot be used .AttributeError"),
        (f"{HERE}:NUMBER", "is a int; expected a class or function"),
        (f"{HERE}:no_optimizer", r"returned a str; expected a torch\.optim\.Optimizer"),
        (f"{HERE}:needs_a_closure", "cannot take a step: "),
        (f"{HERE}:WithNumbers", "keeps 'step', a int, in its state"),
        (f"{HERE}:Upwards", "does not go against the gradient"),
    ],
)
def test_one_that_cannot_train_is_refused_before_anything_starts(optimizer: str, said: str, tmp_path: Path) -> None:
    trial = Trial(key="t", experiment=small_experiment(optimizer=optimizer))
    with pytest.raises(UserError, match=f"training.optimizer: .{optimizer}. {said}"):
        check_start([trial], tmp_path, None)


def test_a_cost_that_needs_adams_moments_is_refused_with_another(tmp_path: Path) -> None:
    trial = Trial(key="t", experiment=small_experiment(optimizer="sgd", arm="fisher"))
    with pytest.raises(UserError, match=r"training\.optimizer: 'sgd' this learning cost needs Adam's second moment"):
        check_start([trial], tmp_path, None)


@pytest.mark.parametrize("name", ["adamm", "torch.optim.SGD", "", "a:b:c"])
def test_a_name_that_is_none_is_refused_with_the_settings(name: str) -> None:
    with pytest.raises(UserError, match=r"optimizer: .*expected adamw, sgd, or package\.module:attribute"):
        small_experiment(optimizer=name)


def test_the_cosine_falls_to_a_tenth() -> None:
    training = small_experiment(steps=110, warmup_steps=10, schedule="cosine").training
    assert [schedule(training, step) for step in (0, 9)] == pytest.approx([1 / 11, 10 / 11])
    by_hand = {10: 1.0, 35: 0.1 + 0.45 * (1 + math.sqrt(0.5)), 60: 0.55, 110: 0.1}
    assert {step: schedule(training, step) for step in by_hand} == pytest.approx(by_hand)


def test_what_was_there_before_keeps_its_digest() -> None:
    """Or no checkpoint of an older version could be resumed from. The number is that of the version before."""
    values = {"name": "pinned", "training": {"steps": 40, "warmup_steps": 4}}
    experiment = Experiment.model_validate(values)
    assert experiment.digest() == "16d263a535d1c280"
    others = ({"micro_batches": 2}, {"optimizer": "sgd"}, {"schedule": "cosine"}, {"schedule": "constant"})
    changed = [Experiment.model_validate({**values, "training": {**values["training"], **each}}) for each in others]
    assert len({experiment.digest(), *(each.digest() for each in changed)}) == 5


@pytest.mark.parametrize(
    ("optimizer", "kept"),
    [
        ("adamw", 2.0),
        ("sgd", 1.0),
        ("torch.optim:SGD", 0.0),
        ("torch.optim:RAdam", 2.0),
        ("torch.optim:Adafactor", 2 * 256 / 256**2),  # a number for each row and each column
        (f"{HERE}:Averaging", 1.0),
    ],
)
def test_a_plan_counts_what_the_optimizer_keeps(data: Prepared, tmp_path: Path, optimizer: str, kept: float) -> None:
    experiment = small_experiment(optimizer=optimizer, decode_tasks=0, steps=2, warmup_steps=1)
    assert state_per_parameter(experiment.training) == pytest.approx(kept)
    if kept not in (1.0, 2.0) or optimizer == "torch.optim:RAdam":
        return
    folder = TrialFolder(tmp_path)
    run_training(experiment, folder, data.folder, CPU)
    model = build_model(experiment)
    state = sum(path.stat().st_size for path in checkpoints(folder.checkpoints)[-1].iterdir())
    numbers = sum(p.numel() for p in model.parameters())
    assert checkpoint_bytes(experiment) == numbers * (1 + kept) * 8 * (experiment.training.keep_checkpoints + 2)
    assert state == pytest.approx(numbers * (1 + kept) * 8, rel=0.35)  # names and shapes take much of so small a model


def test_the_plan_of_a_trial_says_so(data: Prepared) -> None:
    def bytes_of(optimizer: str) -> int:
        (kind,) = kinds_of([Trial(key="a", experiment=small_experiment(optimizer=optimizer))], data)
        return kind.state_bytes // (8 * kind.parameters)

    assert [bytes_of(name) for name in ("adamw", "sgd", "torch.optim:SGD")] == [4, 3, 2]
