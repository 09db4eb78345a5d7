"""The console command `tiny-onn`. Heavy imports wait until a command runs, so that --help is quick."""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UserError

_CONFIG = click.argument("config", type=click.Path(path_type=Path))
_OUTPUT = click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder for everything that is written: data, checkpoints, MLflow's store, reports.",
)
_SET = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Replace a setting of CONFIG by its dotted name, for example --set training.steps=100. May be repeated.",
)
_SCALE = click.option(
    "--scale", default=None, metavar="NAME", help="One of CONFIG's `scales`, for example gpu; --set goes on top of it."
)
_URI = click.option(
    "--tracking-uri",
    default=None,
    metavar="URI",
    help="MLflow's store, for example http://host:5000; user and password best go into MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD. Default: a SQLite file in the output folder.",
)
_EXPERIMENT = click.option(
    "--experiment", "mlflow_experiment", default="tiny-onn", show_default=True, help="MLflow experiment."
)


def _running(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `train` and `ablate` share."""
    for option in (
        click.option("--resume", is_flag=True, help="Go on with an interrupted run; finished trials are not repeated."),
        click.option(
            "--address", default=None, metavar="HOST:PORT", help="A Ray cluster. Default: this machine alone."
        ),
        click.option("--verbose", is_flag=True, help="Let Ray speak."),
        click.option(
            "--track-later", is_flag=True, help="Start even if the tracker cannot be reached; it gets everything later."
        ),
        _EXPERIMENT,
        _URI,
        _SET,
        _SCALE,
        _OUTPUT,
        _CONFIG,
    ):
        command = option(command)
    return command


class _Group(click.Group):
    """Ends on a UserError with its message alone, and exit code 2: nothing was started.

    Commands of packages that build on this one, such as `bench`, come in by the entry points `tiny_onn.commands`.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in _entry_points():
            found = _entry_points()[cmd_name].load()
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)


def _entry_points() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group="tiny_onn.commands")}


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tiny-onn")
def main() -> None:
    """Sparse routing trained by per-token gradients: experiments on Ray, tracked in MLflow.

    \b
    Examples:
      tiny-onn ablate experiments/smoke.yaml          the whole way in two minutes
      tiny-onn ablate experiments/ablation.yaml       the ablation
      tiny-onn report ablation                        its report once more, from MLflow
      tiny-onn ui                                     browse the runs
      tiny-onn sync                                   deliver what the tracker was not there for
    """


@main.command()
@_CONFIG
@_OUTPUT
@_SET
def prepare(config: Path, output: Path, changes: tuple[str, ...]) -> None:
    """Turn ARC tasks into Parquet shards, as the `data` section of CONFIG says.

    `train` and `ablate` do this by themselves; data already prepared and intact is used as it is.

    \b
    Examples:
      tiny-onn prepare experiments/ablation.yaml
      tiny-onn prepare experiments/ablation.yaml --set data.dataset=arc-agi-1 --set data.max_tokens=1024
      tiny-onn prepare experiments/ablation.yaml --set data.dataset=folder --set data.folder=my_tasks
    """
    from pipeline.layout import Output
    from pipeline.preparing import prepare_and_tell

    prepare_and_tell(_read(config, changes).data, Output(output).data)


@main.command()
@_running
def train(config: Path, output: Path, scale: str | None, changes: tuple[str, ...], **options: Any) -> None:
    """Train one model: CONFIG without its `sweep` section.

    \b
    Examples:
      tiny-onn train experiments/ablation.yaml --set training.arm=per_token --set training.seed=7
      tiny-onn train experiments/ablation.yaml --set name=wide --set model.hidden=128 --set workers.count=2
    """
    from pipeline.config import Trial, replace, trial_key

    experiment = replace(_read(config, changes, scale), {"sweep": None}, str(config))
    key = trial_key(experiment.training.arm, experiment.training.seed)
    _run(
        experiment,
        (Trial(key=key, experiment=experiment),),
        output,
        ("train", config),
        changes,
        scale,
        **options,
    )


@main.command()
@_running
def ablate(config: Path, output: Path, scale: str | None, changes: tuple[str, ...], **options: Any) -> None:
    """Run the sweep of CONFIG, arms x seeds x grid, then print and file its report.

    Ctrl-C stops cleanly; the same command with --resume goes on where it stopped.

    \b
    Examples:
      tiny-onn ablate experiments/smoke.yaml --output /tmp/try
      tiny-onn ablate experiments/ablation.yaml --resume
      tiny-onn ablate experiments/ablation.yaml --set name=short --set training.steps=100
    """
    from pipeline.config import trials_of

    experiment = _read(config, changes, scale)
    _run(experiment, trials_of(experiment, str(config)), output, ("ablate", config), changes, scale, **options)


@main.command()
@click.argument("sweep")
@_OUTPUT
@_URI
@_EXPERIMENT
def report(sweep: str, output: Path, tracking_uri: str | None, mlflow_experiment: str) -> None:
    """Make the report of SWEEP, a sweep's name, from MLflow alone, and write it to the output folder.

    \b
    Examples:
      tiny-onn report ablation
      tiny-onn report ablation --tracking-uri http://host:5000 --output /tmp/report
    """
    from pipeline.config import check_name

    check_name(sweep, "SWEEP")
    uri = tracking_uri or _local_store(output, sweep)
    _report(uri, mlflow_experiment, sweep, output)


@main.command()
@_OUTPUT
@_URI
@_EXPERIMENT
@click.option("--port", type=click.IntRange(1, 65535), default=None, help="Default: a free one.")
def ui(output: Path, tracking_uri: str | None, mlflow_experiment: str, port: int | None) -> None:
    """Serve MLflow's page on this machine and print links that open it as a leaderboard of arms.

    \b
    Examples:
      tiny-onn ui
      tiny-onn ui --output /tmp/try --port 5005
    """
    from pipeline.layout import Output
    from pipeline.serve import serve

    uri = tracking_uri or _local_store(output, "a sweep")
    serve(uri, mlflow_experiment, Output(output).artifacts, port)


@main.command()
@click.argument("sweep", required=False)
@_OUTPUT
@click.option(
    "--tracking-uri",
    default=None,
    metavar="URI",
    help="MLflow's store. Default: the one that the sweep was given; another one gets everything.",
)
@click.option("--experiment", "mlflow_experiment", default=None, help="MLflow experiment. Default: the sweep's own.")
def sync(sweep: str | None, output: Path, tracking_uri: str | None, mlflow_experiment: str | None) -> None:
    """Deliver to MLflow all that it lacks of SWEEP, or of every sweep in the output folder.

    For a tracker that was away, or a command that was killed: sends the metrics, figures and files that wait on disk,
    ends every run as what its trial came to, and files the report. Doing it again does no harm.

    \b
    Examples:
      tiny-onn sync
      tiny-onn sync ablation --output /tmp/try
      tiny-onn sync ablation --tracking-uri http://host:5000      also to copy a sweep to another server
    """
    from pipeline.layout import Output
    from pipeline.sync import sync_and_tell

    def report(uri: str, experiment: str, name: str) -> list[Path]:
        return _report(uri, experiment, name, output)

    sys.exit(sync_and_tell(Output(output), sweep, tracking_uri, mlflow_experiment, report))


def _read(config: Path, changes: tuple[str, ...], scale: str | None = None) -> Any:
    from pipeline.config import at_scale, read_experiment, replace
    from pipeline.yaml_file import parse_value

    experiment = read_experiment(config)
    if scale is not None:
        experiment = at_scale(experiment, scale, str(config))
    values = {}
    for change in changes:
        field, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: expected FIELD=VALUE, for example --set training.steps=100")
        values[field.strip()] = parse_value(text, f"--set {field.strip()}")
    return replace(experiment, values, f"{config} with --set") if values else experiment


def _run(
    experiment: Any,
    trials: tuple[Any, ...],
    output: Path,
    command: tuple[str, Path],
    changes: tuple[str, ...],
    scale: str | None,
    *,
    resume: bool,
    address: str | None,
    verbose: bool,
    track_later: bool,
    tracking_uri: str | None,
    mlflow_experiment: str,
) -> None:
    from rich.console import Console

    from pipeline.destination import Destination
    from pipeline.layout import Output
    from pipeline.preflight import check_data, check_start, open_tracker
    from pipeline.preparing import prepare_and_tell
    from pipeline.sweep import run_sweep
    from pipeline.worker import train_fn_per_worker

    where, console = Output(output), Console()
    left = [trial for trial in trials if not where.trial(experiment.name, trial.key).ended]
    check_start(left, output, address)
    destination = Destination(tracking_uri or None, mlflow_experiment)
    tracker = open_tracker(destination, where, track_later, console)
    prepared = prepare_and_tell(experiment.data, where.data, console)
    check_data(left, prepared)
    settings = ["--scale", scale] if scale else []
    settings += [word for change in changes for word in ("--set", change)]
    words = ["tiny-onn", *map(str, command), *settings, "--output", str(output), *destination.options()]
    outcome = run_sweep(
        experiment,
        trials,
        where,
        prepared,
        train_fn=train_fn_per_worker,
        resume=resume,
        tracker=tracker,
        address=address,
        verbose=verbose,
        console=console,
        command=destination.command([*words, *(["--address", address] if address else [])]),
        report=lambda: _report(destination.store(where)[0], mlflow_experiment, experiment.name, output),
        destination=destination,
    )
    sys.exit(outcome.exit_code)


def _report(uri: str, mlflow_experiment: str, sweep: str, output: Path) -> list[Path]:
    from rich.console import Console

    from pipeline.layout import Output
    from pipeline.report import make_report, print_report, write_report

    made = make_report(uri, mlflow_experiment, sweep)
    files = write_report(made, Output(output).sweep(sweep) / "report")
    console = Console()
    print_report(made, console)
    console.print(f"Report: {files[0]}", highlight=False, soft_wrap=True)
    return files


def _local_store(output: Path, sweep: str) -> str:
    from pipeline.layout import Output

    store = Output(output)
    if not (output / "mlflow.db").exists():
        raise UserError(
            f"--output {output}: holds no mlflow.db. Run {sweep} there first (tiny-onn ablate ... --output {output}), "
            "or name a store with --tracking-uri."
        )
    return store.tracking_uri


if __name__ == "__main__":
    main()
