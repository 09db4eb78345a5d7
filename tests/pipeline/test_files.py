"""Files that are whole or not there, whoever else writes them and whatever fails."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.files import read_json, write_whole


def test_threads_can_write_one_file_at_once(tmp_path: Path) -> None:
    path, text = tmp_path / "file.json", json.dumps(list(range(1000)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_whole(path, text), range(400)))  # an error of any would come out here
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]
    assert path.read_text() == text


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_whole(path, json.dumps(1))

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, json.dumps(2))
    assert read_json(path) == 1
    assert [file.name for file in path.parent.iterdir()] == ["file.json"]
