"""The table of faults names tests and drills that there are, and every drill."""

import re
from pathlib import Path

from tests.drills.registry import DRILLS

HERE = Path(__file__).parent
TABLE = (HERE / "FAULTS.md").read_text(encoding="utf-8")
TESTS = {path.stem: path.read_text(encoding="utf-8") for path in HERE.rglob("test_*.py")}


def named() -> list[tuple[str, str]]:
    """(file, how the test's name begins) of each test in the table, where `…` stands for the file before."""
    pairs, file = [], ""
    for names in re.findall(r"`((?:test_\w+|…)::test_\w+)…?`", TABLE):
        before, _, test = names.partition("::")
        file = file if before == "…" else before
        pairs.append((file, test))
    return pairs


def test_every_test_in_the_table_is_there() -> None:
    assert len(named()) > 100
    missing = [f"{file}::{test}" for file, test in named() if f"\ndef {test}" not in TESTS.get(file, "")]
    assert missing == []


def test_every_drill_is_in_the_table() -> None:
    assert [name for name in DRILLS if f"{name}`" not in TABLE] == []
