import json
from pathlib import Path

from click.testing import CliRunner

from experiments.benchmarks.cli import bench
from experiments.benchmarks.tracking_load import POINTS, metrics


def test_it_delivers_all_points_both_ways(tmp_path: Path) -> None:
    words = ["--trials", "3", "--steps", "2", "--every", "0.5", "--processes", "1", "--store", "sqlite", "--json"]
    done = CliRunner().invoke(bench, ["tracking", *words, "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["points_a_step"] == POINTS == len(metrics(1)) == 3 + 7 * 6
    sqlite = result["stores"]["sqlite"]
    assert 0 < sqlite["lag_p50"] <= sqlite["lag_p95"] <= sqlite["lag_max"]
    assert 0 < sqlite["call_p50"] <= sqlite["call_p95"]
    assert 0 <= sqlite["points_behind_at_the_end"] <= 3 * 2 * POINTS
    assert sqlite["courier_driver_cpu"] > 0
    assert result["skipped"] == {}


def test_a_store_that_is_none_is_refused() -> None:
    done = CliRunner().invoke(bench, ["tracking", "--store", "mysql"])
    assert done.exit_code == 2
    assert "there are sqlite, server, postgres" in done.stderr
