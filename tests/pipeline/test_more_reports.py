"""Further public reports of users of the same libraries. What of them was wrong here has its test in this file."""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.tracking.describe import git_commit

ROOT = Path(__file__).parents[2]


def test_the_commit_is_the_codes_own_also_in_a_git_hook(tmp_path: Path, monkeypatch) -> None:
    """GIT_DIR has git answer for another repository than the one it is asked about."""
    own = git_commit()
    other = ["git", "-C", str(tmp_path)]
    identity = ["-c", "user.email=a@b", "-c", "user.name=a"]
    subprocess.run([*other, "init", "-q"], check=True)
    subprocess.run([*other, *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert git_commit() == own


def test_warnings_that_are_errors_end_no_command(tmp_path: Path) -> None:
    """A library that MLflow needs warns of a deprecation."""
    store = f"sqlite:///{tmp_path}/mlflow.db"
    opens = "from pipeline.tracking.store import open_store; import sys; open_store(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", opens, store], check=True, env=environment, capture_output=True)
    words = [sys.executable, "-m", "pipeline.cli", "report", "nosuch", "--output", str(tmp_path)]
    environment["PYTHONWARNINGS"] = "error"
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: MLflow has no experiment 'tiny-onn'")


def test_a_command_without_any_output_ends_as_it_would_with_one(tmp_path: Path) -> None:
    """Standard output and error closed, as by some service managers."""
    words = f"exec {sys.executable} -m pipeline.cli report nosuch --output {tmp_path} >&- 2>&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(["sh", "-c", words], check=False, env=environment).returncode == 2
