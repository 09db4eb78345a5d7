"""What a job looks at first on the cluster, and what it is told there."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.settings.experiment_file import read_experiment
from pipeline.submission.on_cluster import check_versions, main, with_cluster_settings
from pipeline.submission.submit import Submission

ROOT = Path(__file__).parents[3]


def test_the_clusters_own_settings_fill_what_the_command_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("TINY_ONN_OUTPUT", "/mnt/shared")
    monkeypatch.setenv("TINY_ONN_TRACKING_URI", "http://mlflow:5000")
    address = ["--address", "10.0.0.1:6379"]
    tracker = ["--tracking-uri", "http://mlflow:5000"]
    assert with_cluster_settings(["ablate", "x"]) == ["ablate", "x", "--output", "/mnt/shared", *tracker, *address]
    monkeypatch.setenv("TINY_ONN_STORAGE", "s3://bucket/runs")
    storage = ["--storage", "s3://bucket/runs"]
    tracker = [*storage, *tracker]
    assert with_cluster_settings(["ablate", "x", "--output", "/o"]) == [
        "ablate",
        "x",
        "--output",
        "/o",
        *tracker,
        *address,
    ]


@pytest.mark.parametrize("output", [None, "runs"])
def test_an_output_that_would_go_with_the_job_is_refused(monkeypatch: pytest.MonkeyPatch, output: str | None) -> None:
    for name in ("TINY_ONN_OUTPUT", "TINY_ONN_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=rf"--output: found {output or 'nothing'}, expected the absolute path"):
        with_cluster_settings(["ablate", "x", *(["--output", output] if output else [])])


@pytest.mark.pinned
def test_versions_that_differ_end_the_job_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_versions(ROOT / "pyproject.toml", ROOT / "constraints.txt")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "submitted").mkdir()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    pins = (ROOT / "constraints.txt").read_text().replace("\ntorch==", "\ntorch==1.")
    (tmp_path / "submitted" / "constraints.txt").write_text(pins)
    with pytest.raises(SystemExit) as ended:
        main(["ablate", "submitted/experiment.json"])
    assert ended.value.code == 2
    assert "differs from the constraints file: torch is 2." in capsys.readouterr().err


def test_a_password_is_not_on_the_jobs_command_line() -> None:
    secret = "postgresql://me:hunter2@db/mlflow"
    experiment = read_experiment(ROOT / "experiments" / "smoke.yaml")
    sent = Submission(
        experiment, ROOT, ROOT / "constraints.txt", "tiny-onn submit x", tracking_uri=secret, storage=secret
    )
    assert sent.entrypoint == (
        "exec python -m pipeline.submission.on_cluster ablate submitted/experiment.json --experiment tiny-onn"
    )
