"""Folders of projects, with and without git, and what of them would be sent."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.submission.package import files_to_send

STAYS = (
    "runs/sweeps/a/metrics.jsonl",
    "data/shard.parquet",
    ".venv/lib/big.so",
    "pipeline/__pycache__/a.pyc",
    ".pytest_cache/x",
)
GOES = ("pyproject.toml", "pipeline/a.py", "pipeline/data/b.py", "experiments/c.yaml", ".gitignore")


def tree(folder: Path) -> Path:
    """A project with what a working tree gathers."""
    for name in (*STAYS, *GOES, "ignored.log"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("*.log\n.venv/\n")
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def tracked(folder: Path, *names: str) -> Path:
    """`tree`, with these files under git, or all that it does not ignore."""
    if not (folder / "pyproject.toml").exists():
        tree(folder)
    git(folder, "init", "--quiet")
    git(folder, "add", *(names or ["."]))
    return folder


def sent(folder: Path, *wanted: Path, confirmed: Sequence[str] = ()) -> set[str]:
    """The names of what would be sent."""
    return {path.as_posix() for path in files_to_send(folder, wanted, confirmed).files}
