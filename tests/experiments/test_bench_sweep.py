"""What `bench sweep` says of a sweep that has recorded where its time went. Sweeps are run elsewhere."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from experiments.benchmarks import sweep
from experiments.benchmarks.cli import bench
from pipeline.layout import Output

WORKER = {"seconds": {"steps": 6, "worker": 2}, "spans": [["worker", 107, 109], ["steps", 109, 115]]}
TOLD = {
    "sweep": "smoke",
    "session": "x",
    "cores": 2,
    "command": {"spans": [["command", 100, 105], ["trials", 105, 115], ["delivery", 115, 116]]},
    "trials": {"per_token-s0": {"start": 105, "end": 115, "cores": 1, "worker": WORKER}},
}


def _record(output: Path) -> None:
    path = Output(output).phases("smoke")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(TOLD))


def test_it_tells_the_table_the_chart_and_the_ratio_of_a_finished_sweep(tmp_path: Path) -> None:
    _record(tmp_path / "runs")
    words = ["sweep", "--finished", str(tmp_path / "runs"), "--output", str(tmp_path / "bench"), "--json"]
    done = CliRunner().invoke(bench, words, catch_exceptions=False)
    result = json.loads(done.stdout)
    assert result["wall"] == 16
    assert result["steps_over_cores"] == 3  # 6 s on one of two cores
    assert result["wall_over_steps"] == pytest.approx(16 / 3)
    assert result["first_step"] == 9
    assert sum(result["phases"].values()) == pytest.approx(16)
    assert result["trials"]["per_token-s0"]["phases"] == {"steps": 6.0, "worker": 2.0, "driver": 2.0}
    assert "| steps | 6.0 | 37.5 | 6.0 | 6.0 |" in (tmp_path / "bench" / "sweep.md").read_text()
    assert (tmp_path / "bench" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_lies_outside_the_process_is_counted_too(tmp_path: Path) -> None:
    _record(tmp_path)
    phases = sweep.from_outside(sweep.recorded(tmp_path, "smoke"), began=98.5, ended=118.0)
    assert phases.wall == 19.5
    assert phases.of_the_wall()["command"] == 6.5
    assert phases.of_the_wall()["shutdown"] == 2.0


def test_a_folder_without_the_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match=r"phases\.json: does not say where time went"):
        sweep.recorded(tmp_path, "smoke")


def test_a_command_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="exit code 2") as raised:
        sweep.run("nosuch.yaml", "nosuch", (), tmp_path, _NoProgress())
    assert "nosuch.yaml" in raised.value.message.partition(":\n")[2]


class _NoProgress:
    def begin(self, what: str, steps: int) -> None:
        pass

    def step(self, doing: str) -> None:
        pass
