import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from experiments.benchmarks import step as question
from experiments.benchmarks import variants
from experiments.benchmarks.cli import bench
from experiments.benchmarks.report import Progress
from experiments.benchmarks.variants import NAMES, Size, Step
from pipeline.settings.config import TrainingConfig
from pipeline.training.build import LONG_RUN, compiling, engine_of

TINY = ["step", "--hidden", "16", "--layers", "1", "--seq", "24", "--repeats", "1", "--threads", "1", "--json"]


def test_it_prints_one_json_object_and_files_table_plot_and_numbers(tmp_path: Path) -> None:
    chosen = [word for name in ("two_pass", "plain_eager", "einsum") for word in ("--variant", name)]
    done = CliRunner().invoke(bench, [*TINY, *chosen, "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["variants"]) == {"plain_eager", "two_pass", "einsum"}
    for each in result["variants"].values():
        assert each["seconds"] > 0
        assert each["peak_bytes"] > 4 * 4 * 16 * 16
    assert result["router_gradients_agree_to"] < 1e-3
    assert result["base"] == "plain_eager"  # not the first: there is no compiled plain step
    assert result["variants"]["plain_eager"]["x_base"] == 1
    assert json.loads((tmp_path / "step.json").read_text())["sizes"][0]["seq"] == 24
    assert "| two_pass |" in (tmp_path / "step.md").read_text()
    assert (tmp_path / "step.png").stat().st_size > 1000


def test_a_variant_that_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(variants, "_whole_einsum", lambda grad_output, x, _: torch.ones_like(grad_output))
    chosen = [word for name in ("two_pass", "einsum") for word in ("--variant", name)]
    with pytest.raises(AssertionError, match="two_pass and einsum differ"):
        CliRunner().invoke(bench, [*TINY, *chosen, "--output", str(tmp_path)], catch_exceptions=False)


def test_what_does_not_fit_is_reported_and_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("experiments.benchmarks.step_times.free_bytes", lambda _: 10_000)
    done = CliRunner().invoke(bench, [*TINY, "--variant", "einsum", "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "does not fit" in json.loads(done.stdout)["variants"]["einsum"]["not_run"]


@pytest.mark.parametrize("fits", [0, 2])  # calls: the check of the gradients is the first
def test_a_variant_that_runs_out_of_memory_is_reported_and_the_rest_runs(
    fits: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, calls = variants._whole_einsum, []

    def greedy(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        if len(calls) > 4 * fits:  # q, k, v and o of a step
            raise torch.OutOfMemoryError("Tried to allocate 64.00 GiB")
        return whole(*arguments)

    monkeypatch.setattr(variants, "_whole_einsum", greedy)
    monkeypatch.setattr("experiments.benchmarks.step_times.peak_bytes", lambda *_: 1)
    chosen = [word for name in ("einsum", "plain_eager", "two_pass") for word in ("--variant", name)]
    done = CliRunner().invoke(bench, [*TINY, *chosen, "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    by_name = json.loads(done.stdout)["variants"]
    assert by_name["einsum"] == {"not_run": "does not fit: Tried to allocate 64.00 GiB"}
    assert all(by_name[name]["seconds"] > 0 for name in ("plain_eager", "two_pass"))
    assert list(by_name) == ["einsum", "plain_eager", "two_pass"]


def test_the_einsum_holds_one_float32_for_each_token_expert_and_input() -> None:
    assert Size(768, 2, 4096).einsum_bytes == Size(768, 2, 4096, autocast=True).einsum_bytes == 9 * 2**30


def test_every_size_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resets = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(None))
    monkeypatch.setattr("experiments.benchmarks.step_times.peak_bytes", lambda *_: 1)
    words = [*TINY, "--hidden", "18", "--variant", "plain_eager", "--output", str(tmp_path)]
    assert CliRunner().invoke(bench, words, catch_exceptions=False).exit_code == 0
    assert len(resets) == 2


def test_all_uncompiled_variants_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    by_variant = {}
    for name in ("two_pass", "einsum", "hooks", "hooks_observed", "fused_elementwise", "fused_observed"):
        step = Step(name, Size(16, 2, 20))
        step._model.double()
        by_variant[name] = torch.cat([gradient.flatten() for gradient in step.router_gradients()])
    truth = by_variant.pop("two_pass")
    for gradients in by_variant.values():  # all but the loss, which is taken in float32, is in float64
        assert float((gradients - truth).norm() / truth.norm()) < 1e-6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variant", "fussed"], "'fussed'; there are plain_eager"),
        (["--device", "cuda"], "torch finds no GPU here"),
        (["--hidden", "7"], "7 cannot be cut into 1 heads of even width; 6 can"),
        (["--output", __file__], "cannot be used (File exists)"),
        (["--output", "/proc"], "/proc cannot be used"),  # it is there, and not to be written to
        (["--threads", "100000"], "100000 is not in the range"),  # which would end in a segmentation fault
        (["--device", "tpu9"], "'tpu9' is no device"),
        (["--device", "meta"], "'meta' is no device"),
        (["--hidden", "0"], "0 is not in the range"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str) -> None:
    if words[1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(bench, ["step", *words])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    done = CliRunner().invoke(bench, ["step", "--device", "cuda:2"])
    assert done.exit_code == 2
    assert "cuda:2 is not among the 2 GPUs" in done.stderr


@pytest.mark.slow
def test_every_variant_runs_compiled(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "experiments.benchmarks", *TINY, "--output", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(json.loads(done.stdout)["variants"]) == {*NAMES, "default", "default_of_long_runs"}


def test_it_needs_neither_ray_nor_mlflow_nor_the_pipeline() -> None:
    program = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'pyarrow', 'pydantic', 'pipeline'):\n"
        "    sys.modules[name] = None\n"
        "from experiments.benchmarks.cli import bench\n"
        "from experiments.benchmarks import step\n"
        "bench(['step', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--bfloat16" in done.stdout


def test_the_default_variant_is_that_of_the_default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingConfig()
    ways = {"elementwise": "fused_elementwise", "blocks": "fused"}
    monkeypatch.setattr("pipeline.training.build.compiler_problem", lambda _: None)  # as where there is a compiler
    assert engine_of(training) == "fused"
    assert ways[compiling(training)] == variants.DEFAULT
    long = TrainingConfig(steps=LONG_RUN)
    assert ways[compiling(long)] == variants.DEFAULT_OF_LONG_RUNS
    base = {"seconds": 2.0, "x_base": 1.0, "peak_bytes": 2**20}
    timed = {variants.DEFAULT: {**base, "x_base": 1.1}, variants.DEFAULT_OF_LONG_RUNS: {**base, "x_base": 1.03}}
    cell = {"variants": {"plain_compiled": base, **timed}, "base": "plain_compiled"}
    monkeypatch.setattr(question, "measure", lambda *_: cell)
    told = question.run([Size(64, 1, 8)], 1, 1, NAMES, Progress(Console()))
    assert told.data["variants"]["default"]["x_base"] == 1.1
    assert told.data["variants"]["default"]["variant"] == "fused_elementwise"
    assert told.data["variants"]["default_of_long_runs"]["x_base"] == 1.03
    assert told.data["sizes"][0]["variants"]["default"]["x_base"] == 1.1
    assert len(told.rows) == 3  # once in the table
    monkeypatch.setattr(question, "measure", lambda *_: {**cell, "variants": {"plain_compiled": base}})
    assert "default" not in question.run([Size(64, 1, 8)], 1, 1, NAMES, Progress(Console())).data["variants"]
