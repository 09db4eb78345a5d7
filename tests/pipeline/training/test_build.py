"""What `training.compile: auto` comes to, and that whole blocks train as their elementwise parts do."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.data.manifest import Prepared
from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import TrainingConfig
from pipeline.training.build import LONG_RUN, build_dynamics, build_model, compiling
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_data, small_experiment


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("settings", "model", "expected"),
    [
        ({"steps": LONG_RUN - 1}, None, "elementwise"),
        ({"steps": LONG_RUN}, None, "blocks"),
        ({"steps": LONG_RUN, "schedule": "cosine"}, None, "blocks"),
        ({"steps": LONG_RUN, "schedule": "constant"}, None, "elementwise"),  # it may get more steps later
        ({"steps": LONG_RUN, "engine": "hooks"}, None, "elementwise"),
        ({"steps": LONG_RUN, "arm": "aggregated"}, None, "elementwise"),  # needs hooks
        ({"steps": LONG_RUN, "precision": "float64"}, None, "elementwise"),
        ({"steps": LONG_RUN, "precision": "bfloat16"}, None, "blocks"),
        ({"steps": LONG_RUN}, nn.Linear(2, 2), "elementwise"),  # a model without our blocks
        ({"steps": LONG_RUN, "compile": "eager"}, None, "eager"),
        ({"steps": 100, "compile": "blocks"}, None, "blocks"),
    ],
)
def test_auto_compiles_blocks_in_long_runs_that_have_them(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], model: nn.Module | None, expected: str
) -> None:
    monkeypatch.setattr("pipeline.training.build.compiler_problem", lambda _: None)
    training = TrainingConfig.model_validate(settings)
    assert compiling(training, "cpu", model) == expected


def test_without_a_compiler_a_long_run_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.build.compiler_problem", lambda _: "there is none")
    assert compiling(TrainingConfig(steps=LONG_RUN)) == "eager"


def test_the_model_of_a_long_run_has_compiled_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.build.compiler_problem", lambda _: None)
    for steps, expected in ((LONG_RUN - 1, False), (LONG_RUN, True)):
        experiment = small_experiment(steps=steps, precision="float32", compile="auto")
        model = build_model(experiment)
        build_dynamics(model, experiment.training)
        assert model._blocks_are_compiled == expected


@pytest.mark.slow
def test_a_run_with_compiled_blocks_is_one_with_compiled_parts(data: Prepared, tmp_path: Path) -> None:
    losses = {}
    for way in ("elementwise", "blocks"):
        folder = TrialFolder(tmp_path / way)
        run_training(
            small_experiment(steps=12, precision="float32", compile=way), folder, data.folder, torch.device("cpu")
        )
        losses[way] = [line.metrics["train/task_loss"] for line in read_spool(folder.spool)[0]]
    assert losses["blocks"] == pytest.approx(losses["elementwise"], rel=1e-4)
    assert len(losses["blocks"]) > 1
