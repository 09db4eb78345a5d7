"""The help of every command: whole in the lists, with examples that the command takes."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import main


def commands(group: click.Group = main, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands below `group`, by the words that call them; groups too."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


ALL = dict(commands())


def examples(text: str) -> list[list[str]]:
    """The command lines below "Examples:", without what is said beside them, after three spaces and more."""
    lines = re.sub(r"\\\n\s*", "", text.partition("Examples:\n")[2]).splitlines()
    return [shlex.split(line.strip().partition("   ")[0]) for line in lines if line.strip().startswith("tiny-onn ")]


@pytest.mark.parametrize("words", [(), ("bench",), ("jobs",)])
def test_lists_of_commands_cut_nothing_short(words: tuple[str, ...]) -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(main, [*words, "--help"], catch_exceptions=False)
    listed = shown.output.partition("Commands:\n")[2]
    assert listed.strip()
    assert "..." not in listed.replace("`submit ... --resume`", "")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_examples_that_name_options_it_has(words: tuple[str, ...]) -> None:
    given = examples(ALL[words].help or "")
    assert given, f"tiny-onn {' '.join(words)} --help has no examples"
    for example in given:
        called = next(ALL[key] for key in (tuple(example[1:3]), tuple(example[1:2])) if key in ALL)
        rest = example[3:] if tuple(example[1:3]) in ALL else example[2:]
        called.make_parser(click.Context(called)).parse_args(rest)  # raises what the command line would


@pytest.mark.parametrize("words", [words for words in ALL if words[0] == "bench"], ids=" ".join)
def test_every_option_of_a_benchmark_says_what_it_is(words: tuple[str, ...]) -> None:
    assert [each.name for each in ALL[words].params if isinstance(each, click.Option) and not each.help] == []
