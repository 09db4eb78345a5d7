"""What a newcomer needs first: `tiny-onn` alone, `experiments`, `init` and `doctor`."""

import shlex
import sys
from pathlib import Path
from typing import TextIO

import click

from pipeline.errors import UserError
from pipeline.options import ADDRESS, OUTPUT, URI


def first_steps() -> str:
    """What `tiny-onn` prints without a command."""
    return """\
Tiny-ONN trains sparse routers with per-token gradients, and compares training signals.

Start with these:
  tiny-onn doctor                check that this machine has everything a run needs
  tiny-onn ablate smoke          a complete sweep at tiny size: data, training, report; two minutes on two cores
  tiny-onn plan ablation         what the ablation would run, and how long it would take here
  tiny-onn ablate ablation       the ablation; Ctrl-C stops it, --resume continues it

Then ask your own question:
  tiny-onn experiments           list the experiments that ship with the package, with their questions
  tiny-onn init my-study.yaml    write a config to edit, with every setting explained
  tiny-onn settings [WORD]       list all settings, or those related to a word

All commands: tiny-onn --help. One command, with examples: tiny-onn ablate --help."""


@click.command(short_help="List the experiments that are installed.")
def experiments() -> None:
    """List the experiments that ship with the package, each with its question.

    `plan`, `ablate`, `train`, `prepare` and `submit` accept such a name, unless a file of that name exists.

    \b
    Examples:
      tiny-onn experiments
    """
    from rich.console import Console
    from rich.table import Table

    from pipeline.settings.experiment_file import read_experiment
    from pipeline.settings.shipped import shipped_experiments

    table = Table("name", "question", box=None, pad_edge=False)
    shipped = shipped_experiments()
    for name, path in shipped.items():
        experiment = read_experiment(path)
        table.add_row(name, experiment.study.question if experiment.study else experiment.description)
    if not shipped:
        raise UserError(
            "no experiments are installed. Install the package anew: pip install --force-reinstall 'tiny-onn[pipeline]'"
        )
    Console(highlight=False, markup=False).print(table)
    click.echo("\nWhat one would run: tiny-onn plan NAME. To run it: tiny-onn ablate NAME.")


@click.command(short_help="Write a config to edit, with every setting explained.")
@click.argument("file", type=click.Path(path_type=Path))
def init(file: Path) -> None:
    """Write FILE, a config to edit: every setting with its default, its limits and its meaning.

    The config is valid: a sweep of three arms and three seeds, named after the file. An existing file is never
    overwritten.

    \b
    Examples:
      tiny-onn init my-study.yaml
    """
    from pipeline.settings.config import check_name
    from pipeline.settings.template import experiment_template

    check_name(file.stem, f"{file}: the name, without what follows the last dot")
    text = experiment_template(file.stem)
    try:
        with file.open("x", encoding="utf-8") as written:
            _write_or_remove(written, text, file)
    except FileExistsError:
        raise UserError(f"{file}: already exists, and was not changed. Name another file.") from None
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}). Expected a file in a folder of yours."
        ) from None
    word = shlex.quote(str(file))
    click.echo(f"Written: {file}. Edit it, then:\n  tiny-onn plan {word}\n  tiny-onn ablate {word}")


@click.command(short_help="List the settings: default, unit, meaning, example.")
@click.argument("word", required=False)
@click.option("--markdown", is_flag=True, help="Print them as the page docs/settings.md.")
def settings(word: str | None, markdown: bool) -> None:
    """List all settings, or those related to WORD, with default, unit, meaning and an example.

    WORD can be part of a name, a word of the meaning, or another tool's name for a setting (`lr`, `batch_size`,
    `epochs`).

    \b
    Examples:
      tiny-onn settings
      tiny-onn settings steps
      tiny-onn settings lr
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    from pipeline.settings.listing import as_markdown, every_setting, find_settings

    shown, elsewhere = every_setting(), None
    if markdown:
        click.echo(as_markdown(shown), nl=False)
        return
    if word is not None:
        shown, elsewhere = find_settings(word, shown)
        if not shown and elsewhere is None:
            raise UserError(f"{word}: no setting is about that. `tiny-onn settings` lists them all.")
    console = Console(highlight=False)
    if elsewhere is not None:
        console.print(f"{escape(word or '')}, here: {escape(elsewhere)}.\n", soft_wrap=True)
    for each in shown:
        default = f"default: {each.default}" if each.default else "to be given"
        unit = f"; unit: {each.unit}" if each.unit else ""
        console.print(f"[bold]{escape(each.name)}[/bold]  ({escape(default + unit)})", soft_wrap=True)
        console.print(Padding(escape(each.meaning), (0, 0, 0, 4)))
        click.echo(f"    {each.change}")  # unbroken, to be copied


@click.command(short_help="Check this machine, or a cluster, before a run.")
@OUTPUT
@ADDRESS
@URI
@click.option("--quick", is_flag=True, help="Skip the slow checks: starting Ray, and the compiler.")
def doctor(output: Path, address: str | None, tracking_uri: str | None, quick: bool) -> None:
    """Check this machine before a run, or the cluster at --address: Python and packages, cores and memory within the
    container's limits, compiler, GPU, folders, ports, proxies, environment variables, Ray and the tracker.

    Each problem is printed with its fix. The exit code is 1 if a problem would stop a run. Nothing is left running or
    written.

    \b
    Examples:
      tiny-onn doctor
      tiny-onn doctor --quick
      tiny-onn doctor --address 10.0.0.5:6379 --output /mnt/tiny-onn --tracking-uri http://10.0.0.5:5000
    """
    from rich.console import Console

    from pipeline.planning.doctor import checks_of, examine, print_findings

    sys.exit(print_findings(examine(checks_of(output, address, tracking_uri, quick)), Console()))


COMMANDS: tuple[click.Command, ...] = (experiments, init, settings, doctor)


def _write_or_remove(written: TextIO, text: str, file: Path) -> None:
    """Writes all of `text`, or removes the file that was made for it, so that no half of it is left on a full disk."""
    try:
        written.write(text)
        written.flush()
    except OSError:
        file.unlink()
        raise
