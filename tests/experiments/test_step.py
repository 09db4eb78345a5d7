import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from experiments.benchmarks import variants
from experiments.benchmarks.cli import bench
from experiments.benchmarks.variants import NAMES, Size, Step

TINY = ["step", "--hidden", "16", "--layers", "1", "--seq", "24", "--repeats", "1", "--threads", "1", "--json"]


def test_it_prints_one_json_object_and_files_table_plot_and_numbers(tmp_path: Path) -> None:
    chosen = [word for name in ("plain_eager", "two_pass", "einsum") for word in ("--variant", name)]
    done = CliRunner().invoke(bench, [*TINY, *chosen, "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["variants"]) == {"plain_eager", "two_pass", "einsum"}
    for each in found["variants"].values():
        assert each["seconds"] > 0
        assert each["peak_bytes"] > 4 * 4 * 16 * 16
    assert found["router_gradients_agree_to"] < 1e-3
    assert json.loads((tmp_path / "step.json").read_text())["sizes"][0]["seq"] == 24
    assert "| two_pass |" in (tmp_path / "step.md").read_text()
    assert (tmp_path / "step.png").stat().st_size > 1000


def test_a_variant_that_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(variants, "_whole_einsum", lambda grad_output, x, _: torch.ones_like(grad_output))
    chosen = [word for name in ("two_pass", "einsum") for word in ("--variant", name)]
    with pytest.raises(AssertionError, match="two_pass and einsum differ"):
        CliRunner().invoke(bench, [*TINY, *chosen, "--output", str(tmp_path)], catch_exceptions=False)


def test_what_does_not_fit_is_said_and_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("experiments.benchmarks.step.free_bytes", lambda _: 10_000)
    done = CliRunner().invoke(bench, [*TINY, "--variant", "einsum", "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "does not fit" in json.loads(done.stdout)["variants"]["einsum"]["not_run"]


def test_all_uncompiled_variants_learn_the_same() -> None:
    size = Size(16, 2, 20)
    found = {name: Step(name, size).router_gradients() for name in ("two_pass", "einsum")}
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variant", "fussed"], "'fussed'; there are plain_eager"),
        (["--device", "cuda"], "torch finds no GPU here"),
        (["--device", "tpu9"], "'tpu9' is no device"),
        (["--hidden", "0"], "0 is not in the range"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str) -> None:
    if words[1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(bench, ["step", *words])
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.slow
def test_every_variant_runs_compiled(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "experiments.benchmarks", *TINY, "--output", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(json.loads(done.stdout)["variants"]) == set(NAMES)


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
