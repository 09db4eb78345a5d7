"""Skipping the rows of closed experts changes nothing but the time."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from experiments.benchmarks import skipping as question
from experiments.benchmarks.cli import bench
from tiny_onn.layers import SparseProtoLinear


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (6, 5)])
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_the_output_is_the_layers(inputs: int, outputs: int, density: float) -> None:
    torch.manual_seed(0)
    layer = SparseProtoLinear(inputs, outputs, density=density).double()
    torch.nn.init.normal_(layer.mu_bias)
    x = torch.randn(7, inputs, dtype=torch.float64)
    with torch.no_grad():
        output, truth = question.skipping(layer, x), layer(x)
    assert bool((truth == 0).any())
    torch.testing.assert_close(output, truth, rtol=1e-12, atol=1e-14)


def test_every_width_and_density_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "_SECONDS", 1e-4)
    words = ["skipping", "--hidden", "8", "--hidden", "32", "--batch", "2", "--repeats", "1", "--json"]
    ran = CliRunner().invoke(bench, [*words, "--output", str(tmp_path)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.stderr
    measured = json.loads(ran.stdout.splitlines()[-1])["measured"]
    assert [(each["hidden"], each["density"]) for each in measured] == [
        (hidden, density) for hidden in (8, 32) for density in question.DENSITIES
    ]
    assert all(each["layer"] > 0 and each["skipping"] > 0 for each in measured)
