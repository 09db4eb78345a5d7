"""A spool survives being cut off anywhere, and never says a thing twice."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.records.spool import Spool, read_spool


def _steps(path):
    return [line.step for line in read_spool(path)[0]]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    spool = Spool(path)
    assert spool.last_step == -1
    assert spool.write(0, {"train/task_loss": 2.5})
    assert spool.write(10, {"train/task_loss": math.nan, "a": math.inf, "b": -math.inf})
    lines, offset = read_spool(path)
    assert [line.step for line in lines] == [0, 10]
    assert lines[0].metrics == {"train/task_loss": 2.5}
    assert math.isnan(lines[1].metrics["train/task_loss"])
    assert (lines[1].metrics["a"], lines[1].metrics["b"]) == (math.inf, -math.inf)
    assert offset == path.stat().st_size == lines[1].end
    for raw in path.read_text().splitlines():
        json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_reading_goes_on_from_the_offset_and_leaves_half_a_line(tmp_path):
    path = tmp_path / "m.jsonl"
    spool = Spool(path)
    spool.write(1, {"a": 1.0})
    _, offset = read_spool(path)
    spool.write(2, {"a": 2.0})
    with path.open("ab") as file:
        file.write(b'{"step": 3, "ti')
    lines, after = read_spool(path, offset)
    assert [line.step for line in lines] == [2]
    assert read_spool(path, after) == ([], after)


@given(cut=st.integers(0, 400))
def test_a_spool_cut_off_anywhere_goes_on_without_gap_or_repeat(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "m.jsonl"
    spool = Spool(path)
    for step in range(5):
        spool.write(step, {"a": float(step)})
    path.write_bytes(path.read_bytes()[:cut])
    whole = path.read_bytes().count(b"\n")
    again = Spool(path)
    assert again.last_step == whole - 1
    written = [again.write(step, {"a": float(step)}) for step in range(5)]
    assert written == [step >= whole for step in range(5)]
    assert _steps(path) == [0, 1, 2, 3, 4]


def test_a_last_line_of_zeros_is_cut_and_a_damaged_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    spool = Spool(path)
    spool.write(1, {"a": 1.0})
    good = path.read_bytes()
    path.write_bytes(good + b"\0" * 20 + b"\n")
    assert Spool(path).last_step == 1
    assert path.read_bytes() == good
    path.write_bytes(b"\0" * 20 + b"\n" + good)
    with pytest.raises(UserError, match=r"m\.jsonl: damaged at byte 0"):
        read_spool(path)


def test_a_step_written_in_two_calls_is_a_mistake_of_ours(tmp_path):
    spool = Spool(tmp_path / "m.jsonl")
    spool.write(5, {"a": 1.0})
    with pytest.raises(ValueError, match="step 5 comes after step 5"):
        spool.write(5, {"b": 1.0})


@pytest.mark.parametrize("name", ["pass@2", "", "a" * 251, "/a", "a/../b", "é", "a\n"])
def test_names_that_the_tracker_would_refuse_are_refused_at_once(tmp_path, name):
    with pytest.raises(ValueError, match="is not a metric name"):
        Spool(tmp_path / "m.jsonl").write(1, {name: 1.0})
