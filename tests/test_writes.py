"""Every place of ours that writes a file, and what it makes sure of: whole or appended to, and readable by whom."""

import ast
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import SECRET_MODE, append_to, make_private, write_whole, write_whole_with
from pipeline.layout import TrialFolder
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_data, small_experiment

ROOT = Path(__file__).parents[1]
WHOLE, ASIDE, APPENDS, SCRATCH, STORAGE = (
    "written whole: aside, flushed, renamed",
    "written in a folder or file aside, which is renamed when it is whole",
    "appended to, through no link",
    "a folder of this process alone, which is removed",
    "put into a storage, whole or not at all",
)
# Each module that writes, the calls by which it does, and what holds of them.
KNOWN: dict[str, dict[str, str]] = {
    "pipeline/files.py": {"os.open": WHOLE, "os.fdopen": WHOLE},
    "pipeline/records/spool.py": {"os.truncate": APPENDS},
    "pipeline/training/checkpoint.py": {"write_text": ASIDE, "save_file": ASIDE},
    "pipeline/training/model_file.py": {"write_text": ASIDE},
    "pipeline/training/afresh.py": {"write_text": "/proc/self/clear_refs, the process's own"},
    "pipeline/training/missing_ranks.py": {"write_bytes": STORAGE},
    "pipeline/data/shard_writer.py": {"ParquetWriter": ASIDE, "write_table": ASIDE},
    "pipeline/data/sources/packed.py": {"zipfile.ZipFile": "is read, as is a member of it", "open": "is read"},
    "pipeline/records/lock.py": {"truncate": APPENDS},
    "pipeline/cli_start.py": {"open": "makes a config where there is none, for its user to edit"},
    "pipeline/running/redirect_output.py": {"os.open": APPENDS, "os.fdopen": "the terminal's own"},
    "pipeline/terminal.py": {"os.open": "/dev/null", "os.fdopen": "the standard streams"},
    "pipeline/tracking/mlflow_process.py": {"open": "an address is asked"},
    "pipeline/reporting/two_sweeps.py": {"to_csv": "into memory"},
    "pipeline/data/published.py": {"write_bytes": STORAGE, "write_table": STORAGE},
    "pipeline/remote/attempt.py": {"write_bytes": STORAGE},
    "pipeline/remote/pusher.py": {"write_bytes": STORAGE},
    "pipeline/remote/sweep.py": {"write_bytes": STORAGE},
    "pipeline/remote/trial.py": {"write_bytes": STORAGE},
    "pipeline/running/driver.py": {"write_bytes": STORAGE},
    "pipeline/storage/lease.py": {"write_bytes": STORAGE},
    "pipeline/storage/opening.py": {"write_bytes": STORAGE},
    "pipeline/storage/creating.py": {"write_bytes": ASIDE},
    "pipeline/running/nodes.py": {"touch": "an empty mark"},
    "pipeline/running/sweep.py": {"touch": "an empty mark"},
    "pipeline/submission/package.py": {"zipfile.ZipFile": SCRATCH, "write_text": ASIDE, "shutil.copyfile": ASIDE},
    "pipeline/tracking/images.py": {"savefig": "into memory"},
    "pipeline/training/observer.py": {"savefig": "into memory"},
    "pipeline/reporting/figures.py": {"savefig": "into memory"},
    "pipeline/reporting/files.py": {"savefig": WHOLE, "to_csv": "into memory", "to_parquet": "into memory"},
}
_WRITES = {
    "write_text", "write_bytes", "touch", "savefig", "save_file", "write_table", "to_csv", "to_parquet", "to_json",
    "to_pickle", "tofile", "symlink_to", "hardlink_to", "ZipFile", "ParquetWriter", "NamedTemporaryFile", "mkstemp",
    "copyfile", "copy", "copy2", "copytree", "truncate", "fdopen",
}  # fmt: skip
_NOT_FILES = {"copy"}  # also of dicts and tensors
_OF_MODULES = {"os.open", "os.fdopen", "os.truncate", "os.mkfifo", "shutil.copy", "shutil.copyfile", "shutil.copytree"}


def writes(source: str) -> Iterator[tuple[int, str]]:
    """The calls in a module's source by which it can write a file: (line, call)."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if last == "open" and not name.startswith(("os.", "pillow.")) and _opens_to_write(node):
            yield node.lineno, "open"
        elif name in _OF_MODULES:
            yield node.lineno, name
        elif last in _WRITES - _NOT_FILES and name not in _OF_MODULES:
            yield node.lineno, name if name.startswith("zipfile.") else last


def _opens_to_write(node: ast.Call) -> bool:
    """`open` with a mode that writes, or with one that is not written out."""
    place = 1 if isinstance(node.func, ast.Name) else 0
    mode: Any = next((word.value for word in node.keywords if word.arg == "mode"), None)
    mode = node.args[place] if mode is None and len(node.args) > place else mode
    if mode is None:
        return False
    return not isinstance(mode, ast.Constant) or not set(str(mode.value)) <= set("rbt")


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("p.open('w')", ["open"]),
        ("open(p, 'ab')", ["open"]),
        ("p.open(mode)", ["open"]),
        ("open(p, mode='x')", ["open"]),
        ("p.open()\nopen(p)\np.open('rb')", []),
        ("p.write_text('x')", ["write_text"]),
        ("os.open(p, flags)", ["os.open"]),
        ("figure.savefig(p)", ["savefig"]),
        ("value.copy()\nshutil.copy(a, b)", ["shutil.copy"]),
    ],
)
def test_the_search_finds_what_writes(source: str, calls: list[str]) -> None:
    assert [call for _, call in writes(source)] == calls


def test_every_place_that_writes_is_known_and_says_what_holds() -> None:
    """A new one goes through `pipeline.files`, or is added to KNOWN with a reason."""
    by_file: dict[str, set[str]] = {}
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        for _, call in writes(path.read_text()):
            by_file.setdefault(path.relative_to(ROOT).as_posix(), set()).add(call)
    assert by_file == {name: set(calls) for name, calls in KNOWN.items()}


def test_a_trial_leaves_no_file_that_was_written_in_place_or_that_others_can_write(tmp_path: Path) -> None:
    """As seen by Python's own calls: a name that a reader looks for is only ever renamed to, or appended to."""
    opened: list[tuple[str, int]] = []
    running = True

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if running and event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append((arguments[0], arguments[2]))

    data, folder = small_data(tmp_path / "data"), TrialFolder(tmp_path / "trial")
    before = os.umask(0o022)
    sys.addaudithook(note)  # there is no way to remove one
    try:
        run_training(small_experiment(), folder, data.folder, __import__("torch").device("cpu"))
    finally:
        running = False
        os.umask(before)
    ours = [(Path(path).relative_to(folder.root), flags) for path, flags in opened if path.startswith(str(folder.root))]
    in_place = {
        path.as_posix()
        for path, flags in ours
        if not any(part.startswith(".") for part in path.parts) and not flags & os.O_APPEND
    }
    assert in_place == set()
    assert any(flags & os.O_APPEND for path, flags in ours if path.name == folder.spool.name)
    files = [path for path in folder.root.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)] == []
    assert list(folder.root.rglob(".*")) == []  # nothing is left aside


def test_what_may_hold_a_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Under `ray` lies what Ray pickles of a trial, the address of its storage too; a real sweep's: `test_sweep`."""
    from pipeline.records.attempts import Attempt, write_attempt

    folder = TrialFolder(tmp_path / "trial")
    before = os.umask(0)
    try:
        folder.ray.mkdir(parents=True)
        assert stat.S_IMODE(folder.ray.stat().st_mode) == 0o777  # as an earlier version, or somebody else, left it
        write_attempt(folder, Attempt(1, "x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.ray.stat().st_mode) == 0o700
    (folder.root / "link").symlink_to(tmp_path)
    mode = tmp_path.stat().st_mode
    with pytest.raises(OSError, match="link"):
        make_private(folder.root / "link")
    assert tmp_path.stat().st_mode == mode


@pytest.mark.parametrize("mode", [0o666, SECRET_MODE])
def test_a_file_is_whole_has_its_mode_and_is_written_through_no_link(tmp_path: Path, mode: int) -> None:
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_text("mine")
    before = os.umask(0o022)
    try:
        write_whole(target, "one", mode)
        target.chmod(0o777)
        write_whole(target, "two", mode)
        assert (target.read_text(), stat.S_IMODE(target.stat().st_mode)) == ("two", mode & ~0o022)
        target.unlink()
        target.symlink_to(victim)
        write_whole(target, "three", mode)  # in place of the link
        aside = tmp_path / f".{target.name}.{os.getpid()}-{__import__('threading').get_ident()}"
        aside.symlink_to(victim)  # planted where it is known to write aside
        write_whole(target, "four", mode)
    finally:
        os.umask(before)
    assert victim.read_text() == "mine"
    assert not target.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "victim"]

    def breaks(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole_with(target, breaks)
    assert target.read_text() == "four"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "victim"]


def test_a_planted_link_or_pipe_is_not_appended_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "pipe"):
        with pytest.raises(OSError):  # noqa: PT011
            append_to(tmp_path / name)
    assert victim.read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_the_lock_of_a_folder_is_no_link_and_truncates_nothing(tmp_path: Path) -> None:
    from pipeline.errors import UserError
    from pipeline.records.lock import folder_lock

    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "lock").symlink_to(victim)
    with pytest.raises(UserError, match=r"lock: is a link, and is not written through\. Remove it"):
        folder_lock(tmp_path / "folder").__enter__()
    assert victim.read_text() == "mine"


def test_a_written_file_outlives_a_loss_of_power_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is flushed before it is renamed, and its folder after."""
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (seen.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(Path, "replace", lambda self, target: (seen.append("renamed"), replace(self, target))[1])
    write_whole(tmp_path / "x", "text")
    assert [Path(each).name for each in seen] == [Path(seen[0]).name, "renamed", tmp_path.name]
    assert Path(seen[0]).name.startswith(".x.")


def test_json_of_others_is_read_by_one_reader() -> None:
    """`json.loads` elsewhere is of what this process or its own worker has just written, named here."""
    allowed = {
        "pipeline/foreign_json.py",
        "pipeline/planning/calibration.py",  # its own worker's output
        "pipeline/planning/calibration_worker.py",
        "pipeline/training/agreement.py",  # of peers in the process group
        "pipeline/data/given.py",  # a value of the caller's, through JSON and back
    }
    readers = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.loads", "json.load", "json.JSONDecoder"):
                readers.add(path.relative_to(ROOT).as_posix())
    assert readers == allowed
