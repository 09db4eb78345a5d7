"""What `training.compile: auto` selects, and that a run with compiled blocks equals one with compiled parts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pipeline.layout import Output, TrialFolder
from pipeline.records.spool import read_spool
from pipeline.settings.config import TrainingConfig
from pipeline.training.build import LONG_RUN, MANY_LOGGED, arm_of, build_dynamics, build_model, compiling
from tests.pipeline.samples import small_experiment
from tiny_onn.arm import configure
from tiny_onn.fused import FusedPass, fused_pass
from tiny_onn.hooks import hooks_pass, observe_tokens
from tiny_onn.kernels import Kernels

ROOT = Path(__file__).parents[3]


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
def test_two_workers_with_compiled_blocks_train_as_with_compiled_parts(tmp_path: Path) -> None:
    """In the command, as the type checks of this process cannot be compiled."""
    losses = {}
    for way in ("elementwise", "blocks"):
        output = tmp_path / way
        words = [
            "train",
            str(ROOT / "experiments/smoke.yaml"),
            "--output",
            str(output),
            "--set",
            f"training.compile={way}",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *words], capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (folder,) = Output(output).sweep("smoke").glob("trials/*")
        assert json.loads(TrialFolder(folder).result.read_text())["compiled"] == way
        losses[way] = [line.metrics["train/task_loss"] for line in read_spool(TrialFolder(folder).spool)[0]]
    assert len(losses["blocks"]) == 4
    assert losses["blocks"] == pytest.approx(losses["elementwise"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 200, "log_every": 20}, False),
        ({"steps": 20 * MANY_LOGGED - 1, "log_every": 20}, False),
        ({"steps": 20 * MANY_LOGGED, "log_every": 20}, True),
        ({"steps": 20 * MANY_LOGGED, "log_every": 20, "schedule": "constant"}, False),
    ],
)
def test_measures_are_compiled_in_runs_that_log_often(changes: dict[str, Any], expected: bool) -> None:
    experiment = small_experiment(**{"evaluate_every": 1000, "checkpoint_every": 1000, **changes})
    assert build_dynamics(build_model(experiment), experiment.training).compile_measures is expected


@pytest.mark.parametrize("compiles", [False, True])
def test_an_engine_compiles_what_it_measures_only_where_it_is_to(
    compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small_experiment()
    model, arm = build_model(experiment), arm_of(experiment.training)
    configure(model, arm)
    given: dict[str, Any] = {"valid": None, "labels": 1, "second_moments": {}, "observe": True, "use_compiler": True}
    with hooks_pass(model, arm, compile_measures=compiles, **given) as hooks:
        assert (hooks._observe is observe_tokens) is not compiles
    seen: list[Kernels] = []
    made = FusedPass.__init__

    def noting(self: FusedPass, *arguments: Any, kernels: Kernels, **options: Any) -> None:
        seen.append(kernels)
        made(self, *arguments, kernels=kernels, **options)

    monkeypatch.setattr(FusedPass, "__init__", noting)
    with fused_pass(model, arm, tokens=None, compile_measures=compiles, **given):
        pass
    (kernels,) = seen
    assert (kernels.observe is Kernels().observe) is not compiles
    assert kernels.forward is not Kernels().forward
