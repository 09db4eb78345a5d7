"""The console command `tiny-onn`. Heavy imports wait until a command runs, so that --help is quick."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click

from pipeline.cli_cluster import COMMANDS as _ON_A_CLUSTER
from pipeline.cli_start import COMMANDS as _TO_START_WITH
from pipeline.cli_start import first_steps
from pipeline.cli_tracker import COMMANDS as _WITH_A_TRACKER
from pipeline.errors import UserError
from pipeline.escaping import shown
from pipeline.options import ADDRESS, CONFIG, EXPERIMENT, OUTPUT, SCALE, SET, STORAGE, URI, CommandWithOldNames
from pipeline.renamed import format_warning
from pipeline.settings.changes import parse_changes
from pipeline.terminal import open_standard_streams


def _running(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `train` and `ablate` share."""
    for option in (
        click.option(
            "--resume",
            is_flag=True,
            help="Continue where the last command stopped, and run added trials; finished trials are not repeated.",
        ),
        ADDRESS,
        click.option("--verbose", is_flag=True, help="Show Ray's own output."),
        click.option(
            "--allow-offline-tracking",
            is_flag=True,
            help="Start even if the tracker is unreachable; everything is delivered to it later.",
        ),
        click.option(
            "--accept-changed-code",
            is_flag=True,
            help="Resume even if your own code (an arm's module) has changed; the report says so.",
        ),
        EXPERIMENT,
        URI,
        SET,
        SCALE,
        STORAGE,
        OUTPUT,
        CONFIG,
    ):
        command = option(command)
    return command


class _Group(click.Group):
    """Ends on a UserError with its message alone, and exit code 2: nothing was started; on Ctrl-C with 130.

    Commands of packages that build on this one, such as `bench`, come in by the entry points `tiny_onn.commands`.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in _entry_points():
            command = _entry_points()[cmd_name].load()
        return command

    def invoke(self, ctx: click.Context) -> Any:
        open_standard_streams()
        _let_warnings_be_warnings()
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"Error: {shown(str(error))}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:  # before a sweep, or in a command without one
            click.echo("\nStopped by Ctrl-C.", err=True)
            sys.exit(128 + signal.SIGINT)


def _let_warnings_be_warnings() -> None:
    """PYTHONWARNINGS=error, or -W error, would have a deprecated call deep in a library end the command."""
    warnings.filters[:] = [each for each in warnings.filters if each[0] != "error"]  # type: ignore[index]
    warnings.formatwarning = format_warning
    os.environ.pop("PYTHONWARNINGS", None)  # of the processes that are started


def _entry_points() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group="tiny_onn.commands")}


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="tiny-onn")
@click.pass_context
def main(context: click.Context) -> None:
    """Sparse routing trained by per-token gradients: experiments on Ray, tracked in MLflow.

    \b
    Examples:
      tiny-onn ablate experiments/smoke.yaml          a complete sweep in two minutes
      tiny-onn plan experiments/ablation.yaml         what it would run, and how long it would take
      tiny-onn ablate experiments/ablation.yaml       the ablation
      tiny-onn report ablation                        rebuild its report from MLflow
      tiny-onn ui                                     browse the runs
      tiny-onn sync                                   deliver everything that the tracker lacks
    """
    if context.invoked_subcommand is None:
        click.echo(first_steps())


@main.command(short_help="Convert the data to Parquet shards.")
@CONFIG
@OUTPUT
@STORAGE
@SCALE
@SET
def prepare(config: Path, output: Path, changes: tuple[str, ...], **options: Any) -> None:
    """Convert the data to Parquet shards, according to the `data` section of CONFIG.

    `train` and `ablate` do this automatically. Data that is already prepared and intact is reused.

    \b
    Examples:
      tiny-onn prepare experiments/ablation.yaml
      tiny-onn prepare experiments/ablation.yaml --set data.dataset=arc-agi-1 --set data.max_tokens=1024
      tiny-onn prepare experiments/ablation.yaml --set data.dataset=folder --set data.folder=my_tasks
      tiny-onn prepare experiments/study/depth.yaml --scale gpu
      tiny-onn prepare experiments/ablation.yaml --storage s3://bucket/tiny-onn
    """
    from pipeline import api

    api.prepare(config, parse_changes(changes), output, **options)


@main.command(cls=CommandWithOldNames)
@_running
def train(config: Path, output: Path, changes: tuple[str, ...], **options: Any) -> None:
    """Train one model: CONFIG without its `sweep` section.

    CONFIG can name code, such as an arm `my_costs:ABSOLUTE`, which is imported and runs with your rights.

    \b
    Examples:
      tiny-onn train experiments/ablation.yaml --set training.arm=per_token --set training.seed=7
      tiny-onn train experiments/ablation.yaml --set name=wide --set model.hidden=128 --set workers.count=2
    """
    from pipeline import api

    sys.exit(api.train(config, parse_changes(changes), output, **options).exit_code)


@main.command(cls=CommandWithOldNames, short_help="Run the sweep of CONFIG; print and upload its report.")
@_running
def ablate(config: Path, output: Path, changes: tuple[str, ...], **options: Any) -> None:
    """Run the sweep of CONFIG (arms x seeds x grid x samples), then print its report and upload it to MLflow.

    Ctrl-C stops cleanly; the same command with --resume continues. With --resume you can also add seeds, arms, grid
    values and samples, and steps if training.schedule is constant; only new trials and steps are run. CONFIG can name
    code, such as an arm `my_costs:ABSOLUTE`, which is imported and runs with your rights: check the arms before you run
    somebody else's CONFIG.

    \b
    Examples:
      tiny-onn ablate experiments/smoke.yaml --output /tmp/try
      tiny-onn ablate experiments/ablation.yaml --resume
      tiny-onn ablate experiments/ablation.yaml --resume --set 'sweep.seeds=[0, 1, 2, 3]'
      tiny-onn ablate experiments/ablation.yaml --set name=short --set training.steps=100
      tiny-onn ablate experiments/search.yaml         sample learning rates, prune trials with ASHA
      tiny-onn ablate experiments/ablation.yaml --storage s3://bucket/tiny-onn --resume     on any machine
    """
    from pipeline import api

    sys.exit(api.ablate(config, parse_changes(changes), output, **options).exit_code)


@main.command(short_help="Show what CONFIG would run, its time and memory.")
@CONFIG
@OUTPUT
@SCALE
@SET
@ADDRESS
@click.option("--no-calibration", is_flag=True, help="Skip the timed steps: no estimate of time and memory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr.")
def plan(config: Path, changes: tuple[str, ...], as_json: bool, no_calibration: bool, **options: Any) -> None:
    """Show what `ablate` (or, if CONFIG has no sweep, `train`) would run, its time and memory, without starting it.

    A few steps of each kind of trial are timed on this machine. The exit code is 2 if `ablate` would refuse CONFIG,
    or if the cluster cannot hold a trial.

    \b
    Examples:
      tiny-onn plan experiments/ablation.yaml
      tiny-onn plan experiments/ablation.yaml --set model.hidden=512 --set workers.count=2
      tiny-onn plan experiments/study/depth.yaml --scale gpu --address 10.0.0.5:6379 --no-calibration
    """
    import json

    from rich.console import Console

    from pipeline import api

    console = Console(stderr=as_json)
    calibrate = not no_calibration
    forecast = api.plan(
        config, parse_changes(changes), calibrate=calibrate, console=console, show=not as_json, **options
    )
    if as_json:
        click.echo(json.dumps(forecast.as_json(), indent=1))


@main.command(short_help="Rebuild the report of a sweep from MLflow, or compare two sweeps.")
@click.argument("sweeps", metavar="SWEEP [SECOND]", nargs=-1, required=True)
@OUTPUT
@URI
@EXPERIMENT
@click.option("--no-file", is_flag=True, help="Write the files, but do not upload them to the sweep's summary run.")
@click.option(
    "--sweep-id",
    default=None,
    metavar="ID",
    help="Select one of several sweeps of that name. Default: the one recorded in --output or beside the store.",
)
def report(
    sweeps: tuple[str, ...],
    output: Path,
    tracking_uri: str | None,
    mlflow_experiment: str,
    no_file: bool,
    sweep_id: str | None,
) -> None:
    """Rebuild the report of SWEEP, a sweep's name or id, from MLflow alone, and write it to the output folder.

    report.html is a single page with all figures, for any browser; report.md and results.json have the same content,
    and results.csv, results.parquet and results.tex hold the numbers for other programs. All files are also uploaded to
    the sweep's summary run in MLflow.

    With SECOND, another sweep's name or id, the two are compared instead: SECOND minus SWEEP, paired by arm, setting
    and seed. Use it, for example, to compare today's code with yesterday's. The result is written to SECOND's report
    folder.

    Each sweep has its own id, so that two sweeps of the same name are never mixed. If MLflow has several and no record
    selects one, they are listed; select one with NAME@ID, ID alone, or --sweep-id. The first four digits of an id are
    enough.

    \b
    Examples:
      tiny-onn report ablation
      tiny-onn report ablation --tracking-uri http://host:5000 --output /tmp/report
      tiny-onn report before after
      tiny-onn report ablation@3f2a ablation@9c01
    """
    from pipeline import api

    if len(sweeps) > 2:
        raise UserError(
            f"report: found {len(sweeps)} names, {', '.join(sweeps)}; expected one sweep, or two to compare"
        )
    if len(sweeps) == 2:
        if sweep_id is not None or no_file:
            raise UserError("report: --sweep-id and --no-file are for one sweep; leave them out to compare two")
        api.compare(*sweeps, output, tracking_uri=tracking_uri, mlflow_experiment=mlflow_experiment)
        return
    api.report(
        sweeps[0],
        output,
        tracking_uri=tracking_uri,
        mlflow_experiment=mlflow_experiment,
        file=not no_file,
        sweep_id=sweep_id,
    )


for each in (*_TO_START_WITH, *_WITH_A_TRACKER, *_ON_A_CLUSTER):
    main.add_command(each)

if __name__ == "__main__":
    main()
