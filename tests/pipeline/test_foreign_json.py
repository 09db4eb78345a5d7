"""The one reader of foreign JSON: what it takes is plain and small, and all else is refused in our own words."""

import json
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import read_json
from pipeline.foreign_json import (
    DEEPEST,
    MOST_MEMORY,
    DamagedJson,
    integer,
    memory_of,
    parse_json,
    parse_object,
    read_json_file,
    text,
)

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda value: st.lists(value) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), value),
    max_leaves=20,
)


@given(PLAIN)
def test_what_python_writes_is_read_as_python_reads_it(value):
    for raw in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value).encode()):
        assert parse_json(raw, "x") == json.loads(raw) == value


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff", "can't decode"),
        (b"[" * 100_000, "nested deeper than 32"),
        (b'{"a":' * 100_000, "nested deeper than 32"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested deeper than 32"),
        (b"NaN", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"1e999", "out of range"),
        (b"-1e999", "out of range"),
        (b"0." + b"1" * 100_000, "out of range"),
        (b"9223372036854775808", "out of range"),
        (b"1" * 5000, "out of range"),
        (b'{"a": 1, "a": 1}', "'a' stands twice"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b'{"\\ud800": 1}', "surrogates not allowed"),
        (b'"' + b"x" * 1000 + b'"', "more than 1,000 bytes"),
    ],
)
def test_what_could_harm_a_reader_is_refused_and_named(raw, why):
    with pytest.raises(DamagedJson, match=r"place/x\.json: ") as refused:
        parse_json(raw, "place/x.json", 1000 if b"xxx" in raw else 2**20)
    assert why in str(refused.value)
    assert len(str(refused.value)) < 300
    str(refused.value).encode()


def test_depth_is_counted_without_the_brackets_in_text():
    deepest = "[" * DEEPEST + "]" * DEEPEST
    assert parse_json(deepest, "x") == json.loads(deepest)
    assert parse_json(json.dumps("[" * 1000), "x") == "[" * 1000


def test_an_object_is_asked_for():
    assert parse_object(b'{"a": 1}', "x") == {"a": 1}
    with pytest.raises(DamagedJson, match="x: holds a list; expected a JSON object"):
        parse_object(b"[]", "x")


def test_a_file_is_read_no_further_than_its_bound_and_a_pipe_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps("x" * 100))
    assert read_json_file(path, 102) == "x" * 100
    with pytest.raises(DamagedJson, match=r"a\.json: has more than 101 bytes"):
        read_json_file(path, 101)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedJson, match="is not a regular file"):
        read_json_file(tmp_path / "pipe")
    assert read_json(tmp_path / "pipe") is read_json(tmp_path / "absent") is None
    path.write_bytes(b"[" * 100_000)
    assert read_json(path) is None


def test_numbers_and_text_in_their_range():
    assert integer(3, 0, 3) == 3
    assert text("abc", 3) == "abc"
    for wrong in (True, 1.0, "1", None, -1, 4, [1]):
        with pytest.raises(ValueError, match="expected a whole number from 0 to 3"):
            integer(wrong, 0, 3)
    for wrong in ("abcd", 1, None):
        with pytest.raises(ValueError, match="at most 3 characters"):
            text(wrong, 3)


DENSE = {
    "lists": "[" + "[]," * 20_000 + "1]",
    "objects": "[" + '{"a":1},' * 20_000 + "1]",
    "numbers": "[" + "1.5," * 20_000 + "1]",
    "texts": "[" + ",".join(f'"{n}"' for n in range(20_000)) + "]",
    "keys": "{" + ",".join(f'"{n}":1' for n in range(20_000)) + "}",
    "a grid": json.dumps([[n % 10 for n in range(20)]] * 2_000),
}


@pytest.mark.parametrize("what", DENSE)
def test_what_a_value_takes_is_known_from_its_text(what):
    """Within a factor of two from below, which is what protects the memory, and of six from above."""
    tracemalloc.start()
    value = parse_json(DENSE[what], "x")
    took = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert value
    assert 0.5 < memory_of(DENSE[what]) / took < 6


def test_a_text_of_little_but_brackets_is_refused_before_it_is_read():
    """45 MB, which gzip makes 45 KB of, took 1.1 GB."""
    hostile = "[" + "[]," * (MOST_MEMORY // 70) + "1]"
    tracemalloc.start()
    with pytest.raises(DamagedJson, match=r"x: is not valid JSON \(it would take [0-9,]+ bytes of memory"):
        parse_json(hostile, "x")
    assert tracemalloc.get_traced_memory()[1] < 2 * len(hostile)
    tracemalloc.stop()
