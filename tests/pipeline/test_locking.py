"""A lock is held by one process, follows nothing that is planted in its place, and leaves the file's contents alone."""

import fcntl
import os
from pathlib import Path

import pytest

from pipeline.locking import file_lock


def test_one_holder_at_a_time_and_the_contents_stay(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("mine")
    with file_lock(path):
        for timeout_s in (0, 0.2):
            with pytest.raises(TimeoutError, match="another process has held it"), file_lock(path, timeout_s):
                pass
    with file_lock(path, 0):
        pass
    assert path.read_text() == "mine"


def test_a_link_or_pipe_in_its_place_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("link", "is a link"), ("pipe", "no regular file")):
        with pytest.raises(OSError, match=said), file_lock(tmp_path / name, 0):
            pass
    assert not victim.exists()


def test_a_link_that_is_put_there_after_the_look_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "lock").symlink_to(victim)
    monkeypatch.setattr("pipeline.locking._check_regular", lambda path: None)
    with pytest.raises(OSError, match="Too many levels of symbolic links"), file_lock(tmp_path / "lock", 0):
        pass
    assert not victim.exists()


def test_without_locks_no_weaker_kind_takes_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(OSError, match="Function not implemented"), file_lock(tmp_path / "lock", 0):
        pass
