"""The checks for a GPU, on the CPU and with torch alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import gpu

PROGRAM = """
import sys
for name in ("ray", "mlflow", "pyarrow", "pydantic", "click", "rich", "yaml", "pandas", "pytest", "pipeline"):
    sys.modules[name] = None
from tests import gpu
gpu.ARMS = {"per_token": None, "balanced": 0.3}
gpu.SIZES = {"cpu": [(32, 16), (32, 24)]}
gpu.VARIANTS = gpu.PROFILED = ("plain_eager", "hooks")
sys.argv[1:] = ["--device", "cpu", "--repeats", "1", "--output", sys.argv[1], *sys.argv[2:]]
sys.exit(gpu.main())
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_it_runs_whole_with_torch_alone(tmp_path: Path) -> None:
    done = run(str(tmp_path / "gpu.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("| hidden 32, 16 tokens |", "| hidden 32, 24 tokens |", "| whole step |", "all checks hold"):
        assert part in done.stdout
    assert "FAILED" not in done.stdout
    assert (tmp_path / "gpu.md").read_text() == done.stdout


def test_sizes_for_which_there_is_no_time_are_left_out_and_named(tmp_path: Path) -> None:
    done = run(str(tmp_path / "gpu.md"), "--minutes", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hidden 32, 24 tokens: left out" in done.stdout


def test_a_wrong_gradient_fails_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu.gradients

    def wrong(name: str, engine: str, device: torch.device, kind: str, **options: bool) -> torch.Tensor:
        return right(name, engine, device, kind, **options) * (1.0 if engine == "hooks" else 1.2)

    monkeypatch.setattr(gpu, "gradients", wrong)
    monkeypatch.setattr(gpu, "compiler_problem", lambda device: "the tests check types, which a compiler cannot read")
    monkeypatch.setattr(gpu, "ARMS", {"per_token": None, "balanced": 0.3})
    passed = {what: distance <= allowed for what, distance, allowed in gpu.checks(torch.device("cpu"))}
    assert {what for what, good in passed.items() if not good} >= {
        f"balanced: fused, {kind}" for kind in ("float64", "float32", "bfloat16")
    }
    assert passed["balanced: hooks, float64"]
    assert gpu.distance(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
