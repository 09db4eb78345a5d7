"""What says how often a trial has been taken up."""

from pathlib import Path

import pytest

from pipeline.layout import TrialFolder
from pipeline.records.attempts import Attempt, last_attempt, write_attempt


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    assert last_attempt(folder) is None
    write_attempt(folder, Attempt(3, "now"))
    assert last_attempt(folder) == Attempt(3, "now")


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "null", '{"attempt": "x", "session": "now"}', "7"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    folder = TrialFolder(tmp_path)
    folder.ray.mkdir()
    (folder.ray / "attempt.json").write_text(text)
    assert last_attempt(folder) is None
