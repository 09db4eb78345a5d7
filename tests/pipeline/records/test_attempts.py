"""What says how often a trial has been taken up."""

import threading
from pathlib import Path

import pytest

from pipeline.layout import TrialFolder
from pipeline.records.attempts import Attempt, AttemptTaken, last_attempt, take_attempt, write_attempt


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


def test_numbers_follow_one_another_and_those_of_an_older_version(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    write_attempt(folder, Attempt(3, "old"))
    assert take_attempt(folder, "now") == Attempt(4, "now") == last_attempt(folder)
    (folder.ray / "taken-005").touch()  # by a process that died before it could write its attempt
    assert take_attempt(folder, "now") == Attempt(6, "now")
    assert take_attempt(folder, "now", after=6) == Attempt(7, "now")


def test_of_many_that_begin_the_attempt_after_the_same_one_alone_does(tmp_path: Path) -> None:
    folder, start = TrialFolder(tmp_path), threading.Barrier(8)
    taken: list[Attempt] = []
    refused: list[str] = []

    def take(session: str) -> None:
        start.wait()
        try:
            taken.append(take_attempt(folder, session, after=1))
        except AttemptTaken as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take, args=(str(i),)) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each.number for each in taken] == [2]
    assert last_attempt(folder) == taken[0]
    assert refused == 7 * ["attempt 2 was begun by another process at the same moment; it continues"]
