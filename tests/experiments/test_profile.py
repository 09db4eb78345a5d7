import json
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from experiments.benchmarks.cli import bench
from experiments.benchmarks.profile import KINDS, by_kind, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("ampere_sgemm_128x64_tn", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("CompiledFunctionBackward", "compiled between them"),
        ("triton_poi_fused_add_0", "compiled between them"),
        ("aten::_fused_adamw_", "optimisers and clipping"),
        ("Optimizer.step#AdamW.step", "optimisers and clipping"),
        ("aten::mul", "all else"),
    ],
)
def test_an_operator_is_of_its_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_all_time_is_accounted_for() -> None:
    a = torch.rand(600, 600)

    def step() -> None:
        a @ a
        time.sleep(0.02)  # what no operator tells of

    found, whole = by_kind(step, 2, torch.device("cpu"))
    assert found["matrix products"] > 0
    assert found["all else"] > 0.019
    assert sum(found.values()) == pytest.approx(whole, rel=0.05)  # the profiler's own bookkeeping


def test_it_tells_of_every_variant_what_it_adds(tmp_path: Path) -> None:
    words = ["profile", "--hidden", "16", "--layers", "1", "--seq", "24", "--repeats", "1", "--threads", "1", "--json"]
    words += ["--variant", "plain_eager", "--variant", "two_pass", "--output", str(tmp_path)]
    done = CliRunner().invoke(bench, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    seconds = json.loads(done.stdout)["sizes"][0]["seconds"]
    assert list(seconds) == ["plain_eager", "two_pass"]
    assert set(seconds["two_pass"]) == {*KINDS, "whole step"}
    assert seconds["two_pass"]["whole step"] > 0
    assert "(+" in (tmp_path / "profile.md").read_text()
    assert CliRunner().invoke(bench, ["profile", "--variant", "plane"]).exit_code == 2
