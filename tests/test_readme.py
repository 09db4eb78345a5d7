"""The README is a front door: short, with the commands that there are."""

import re
import shlex
from pathlib import Path

import click
import pytest

from pipeline.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (
    "README.md",
    "docs/guide.md",
    "docs/storage-and-tracking.md",
    "docs/extending.md",
    "docs/costs.md",
    "docs/faults.md",
)
MOST_LINES = 130


def commands_in(text: str) -> list[list[str]]:
    """The words after `tiny-onn` of each command line that is set in, or in backquotes."""
    lines = re.findall(r"^    (?:\.venv/bin/)?tiny-onn (.+)$", text, re.MULTILINE)
    quoted = re.findall(r"`(?:\.venv/bin/)?tiny-onn ([^`]+)`", text)
    return [shlex.split(re.split(r" {3,}", line)[0]) for line in [*lines, *quoted]]


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words call, and what is left of them.

    Raises:
        AssertionError: there is none.
    """
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        subcommand = command.get_command(click.Context(command), words[0])
        assert subcommand is not None, words
        command, words = subcommand, words[1:]
    return command, words


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_the_table_names_every_command() -> None:
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    assert set(re.findall(r"`tiny-onn ([a-z]+)", table)) == set(main.list_commands(click.Context(main)))


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_that_are_shown_exist_with_their_options(name: str) -> None:
    shown = commands_in((ROOT / name).read_text(encoding="utf-8"))
    assert shown
    for words in shown:
        command, rest = find(words)
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= known, words


@pytest.mark.parametrize("name", PAGES)
def test_the_targets_of_make_that_are_shown_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {*re.findall(r"`make ([a-z-]+)`", text), *re.findall(r"^    make ([a-z-]+)", text, re.MULTILINE)} <= rules


def test_a_command_that_is_not_there_would_be_found() -> None:
    assert commands_in("    tiny-onn plan x --scale gpu    what\n`tiny-onn ui`, `make x`\n") == [
        ["plan", "x", "--scale", "gpu"],
        ["ui"],
    ]
    with pytest.raises(AssertionError):
        find(["absent"])
