"""The table of the environment names what the code does with each variable, and tests that there are."""

import os
import re
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.running import ray_process
from pipeline.tracking import mlflow_process
from pipeline.tracking.store import open_store

HERE = Path(__file__).parent
TABLE = (HERE / "ENVIRONMENT.md").read_text(encoding="utf-8")
TESTS = {path.stem: path.read_text(encoding="utf-8") for path in HERE.rglob("test_*.py")}
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TABLE.splitlines() if line.startswith("| ")]
DECISIONS = {name: row[1] for row in ROWS for name in re.findall(r"`([A-Za-z_0-9]+)`", row[0])}
# Names of variables as they stand in our source, in quotes.
_NAMED = re.compile(
    r'"((?:RAY|TUNE|MLFLOW|TORCH|TORCHDYNAMO|TORCHINDUCTOR|MPL|NCCL|GLOO|KINETO|CUDA_VISIBLE|TINY_ONN)_?[A-Z_0-9]*'
    r'|MATPLOTLIBRC|CXX|CC|TMPDIR|no_proxy|NO_PROXY|http_proxy)"'
)
_NO_VARIABLES = {"RAY_", "TUNE_", "MLFLOW_"}  # how names begin


def test_every_row_has_a_decision_a_reason_and_a_test_that_is_there() -> None:
    rows = [row for row in ROWS if row[0] != "what" and not row[0].startswith("---")]
    assert len(rows) > 35
    for row in rows:
        assert len(row) == 4, row
        assert row[1], row
        assert row[2], row
        named = re.findall(r"`(test_\w+)(?:::(test_\w+))?", row[3])
        assert named, row
        for file, test in named:
            assert file in TESTS, (row[0], file)
            assert f"\ndef {test}" in TESTS[file], (row[0], file, test)


def test_every_variable_that_the_source_names_is_in_the_table() -> None:
    root = HERE.parent
    variables = {
        name
        for room in ("pipeline", "tiny_onn", "experiments")
        for path in (root / room).rglob("*.py")
        for name in _NAMED.findall(path.read_text(encoding="utf-8"))
    }
    assert len(variables) > 30
    assert sorted(variables - _NO_VARIABLES - set(DECISIONS)) == []


def test_what_the_code_overrides_or_gives_a_default_is_what_the_table_says() -> None:
    def those(decision: str) -> set[str]:
        return {name for name, said in DECISIONS.items() if said.startswith(decision)}

    assert set(ray_process.NEEDED) <= those("override")
    assert set(ray_process.DEFAULTS) <= those("default")
    assert {*ray_process._LOOPBACK, *ray_process._NOT_OURS} <= those("override for a cluster of our own")
    servers = mlflow_process._NOT_THE_SERVERS - {"MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"}
    assert servers <= those("override for `ui`")
    rays = {name for name in those("override") | those("default") if name.startswith(("RAY_", "TUNE_"))}
    known = {*ray_process.NEEDED, *ray_process.DEFAULTS, *ray_process._LOOPBACK, *ray_process._NOT_OURS}
    # Of these the first two are set by ray_process for a cluster of our own, the third for a job that is submitted.
    assert rays - known == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_JOB_STOP_WAIT_TIME_S"}


def test_a_store_in_workspaces_without_one_is_refused_in_a_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    with pytest.raises(UserError, match=r"cannot be used \(Active workspace is required"):
        open_store(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_store_that_is_opened_leaves_what_the_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in os.environ if name.startswith("MLFLOW_")]
    for name in names:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    open_store(f"sqlite:///{tmp_path}/mlflow.db")
    left = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    for name, value in left.items():
        monkeypatch.setenv(name, value)  # so that all is put back
        assert DECISIONS[name].startswith(("override", "default")), name
    assert left["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
    assert left["MLFLOW_DISABLE_TELEMETRY"] == "true"
