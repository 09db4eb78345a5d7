"""An arm of one's own that cannot train is refused by the commands, before anything is prepared or started."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import api
from pipeline.cli import main
from pipeline.errors import UserError
from tests.pipeline.samples import write_config

BROKEN = """
from tiny_onn.learning_cost import LayerCost, TokenCost

ONE_FOR_ALL = TokenCost(lambda grad_output, x, weight: x.norm(dim=-1, keepdim=True))
DISGUISED = TokenCost(lambda grad_output, x, weight: grad_output.abs() * x.abs().sum(-1, keepdim=True))
NEGATIVE = LayerCost(lambda weight_gradient: -weight_gradient.norm(dim=-1))
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "costs_that_are_none.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    return write_config(tmp_path)


@pytest.mark.parametrize("command", ["ablate", "plan"])
@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("ONE_FOR_ALL", "returned float32 [5, 1] for grad_output [5, 3], x [5, 7], weight [3, 7]; expected float32 [5"),
        ("NEGATIVE", "returned negative values (lowest -"),
    ],
)
def test_an_arm_that_is_no_learning_cost_is_refused_before_anything_starts(
    config: Path, tmp_path: Path, command: str, attribute: str, message: str
) -> None:
    arm = f"costs_that_are_none:{attribute}"
    words = [command, str(config), "--output", str(tmp_path / "out"), "--set", f"sweep.arms=[per_token, '{arm}']"]
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == 2, (ran.output, ran.exception)
    assert f"sweep.arms: '{arm}' cannot be used" in ran.output  # the setting that names it
    assert message in ran.output
    assert not (tmp_path / "out" / "data").exists()


def test_so_it_is_from_a_notebook(config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.arm: .*returned negative values"):
        api.train(config, {"training.arm": "costs_that_are_none:NEGATIVE"}, tmp_path / "out")


def test_a_cost_that_is_another_arm_in_disguise_is_reported_before_anything_starts(
    config: Path, tmp_path: Path
) -> None:
    arm = "costs_that_are_none:DISGUISED"
    words = ["plan", str(config), "--no-calibration", "--output", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, [*words, "--set", f"sweep.arms=[per_token, '{arm}']"])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert f"Warning: {arm} ranks experts exactly as per_token does" in ran.output
    assert "ranks experts exactly" not in CliRunner().invoke(main, words).output
