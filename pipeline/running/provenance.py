"""With which code, packages and settings a trial was trained, each time that it was taken up."""

import hashlib
import json
import platform
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.records.attempts import noted_attempts, parsed_attempts
from pipeline.settings.config import Experiment
from pipeline.settings.user_code import code_digest, user_code
from pipeline.tracking.describe import git_commit

_PACKAGES = ("torch", "ray", "numpy", "pyarrow", "safetensors")


@cache
def sources() -> str:
    """Twelve hex digits that change with any file of the code, whether or not there is a git that could tell."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for room in ("pipeline", "tiny_onn") for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def note_attempt(
    folder: TrialFolder, attempt: int, session: str, experiment: Experiment, before: str | None = None
) -> str:
    """Adds a line to folder.attempts, and returns all of it.

    Args:
        before: what there is so far, where another place than the folder knows it.
    """
    line = {
        "attempt": attempt,
        "session": session,
        "time_ms": time.time_ns() // 1_000_000,
        "commit": git_commit(),
        "sources": sources(),
        "user_code": code_digest(user_code(experiment)),
        "settings": experiment.digest(),
        "workers": experiment.workers.count,
        "packages": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }
    known = noted_attempts(folder) if before is None else parsed_attempts(before)
    text = "".join(json.dumps(each) + "\n" for each in [*known, line])
    write_whole(folder.attempts, text)
    return text


def with_other_code(folder: TrialFolder) -> bool:
    """Whether the trial was last taken up with other code than this."""
    noted = noted_attempts(folder)
    return bool(noted) and noted[-1].get("sources") != sources()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
