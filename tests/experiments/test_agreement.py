"""Engines and numbers of workers on the same global batches: in float64 a run ends where another does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from experiments.benchmarks.agreement import joined
from experiments.benchmarks.agreement import ways as ways_of
from experiments.benchmarks.cli import bench
from pipeline.data.batch import IGNORED, collate
from pipeline.data.sequence import Sequence
from tests.pipeline.samples import small_experiment, write_config


def test_every_way_ends_at_the_same_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")  # so that nothing is compiled, which takes its time
    config = write_config(tmp_path)
    words = ["agreement", str(config), "--arm", "per_token", "--steps", "3", "--json"]
    words += ["--set", "training.precision=float64", "--output", str(tmp_path / "bench")]
    ran = CliRunner().invoke(bench, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.stderr
    measured = json.loads(ran.stdout.splitlines()[-1])["measured"]
    ways = {(each["arm"], each["engine"], each["workers"]) for each in measured}
    assert ways == {
        ("per_token", "hooks", 2),
        ("per_token", "fused", 2),
        ("per_token", "hooks", 1),
        ("per_token", "fused", 1),
    }
    assert ways_of(small_experiment(arm="aggregated")) == (("hooks", 2), ("hooks", 1))
    for each in measured:
        assert each["largest_loss_difference"] < 1e-9
        assert each["parameter_difference"] < 1e-6  # Adam divides rounding by the root of a tiny second moment
        assert each["last_loss"] > 0
        assert each["step_seconds"] > 0
    assert (tmp_path / "bench" / "agreement.md").exists()


def test_shards_are_joined_row_by_row_and_padded_to_the_longest() -> None:
    numbers = np.arange(1, 6, dtype=np.uint8)
    short, long = (
        collate([Sequence(numbers[:n], (numbers[:n], numbers[:n]), np.ones(n, dtype=bool), f"t{n}")]) for n in (3, 5)
    )
    whole = joined([short, long])
    assert whole.tokens.shape == (2, 5)
    assert whole.valid.tolist() == [[True, True, True, False, False], [True] * 5]
    assert whole.labels[0, 2:].tolist() == [IGNORED] * 3
    assert torch.equal(whole.tokens[0, :3], short.tokens[0])
    assert torch.equal(whole.labels[1], long.labels[0])
    assert whole.task_ids == ("t3", "t5")
