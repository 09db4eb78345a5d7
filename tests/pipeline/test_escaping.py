"""What somebody else wrote cannot steer the terminal that it is shown in."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.cli import main
from pipeline.escaping import shown
from pipeline.running.outcome import print_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ü 漢", "plain ü 漢"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\rb\x07", "a\\rb\\x07"),
        ("two\nlines\tand", "two\nlines\tand"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_shown(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert shown(text, keep="").isprintable()


@given(st.text())
def test_whatever_is_shown_is_printable(text: str) -> None:
    assert shown(text, keep="").isprintable()
    assert all(each.isprintable() or each in "\n\t" for each in shown(text))


def test_errors_and_summaries_go_through_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = CliRunner().invoke(main, ["train", str(tmp_path / "x\x1b[2J.yaml")])
    assert ran.exit_code == 2
    assert "\x1b" not in ran.output
    assert "x\\x1b[2J.yaml" in ran.output
    print_line(Console(), "failed: \x1b[31mred")
    assert "\x1b[31m" not in capsys.readouterr().out
