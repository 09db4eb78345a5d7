"""The benchmarks of what lies around a step: workers, data, the tracker, and what a driver and a rank take."""

import signal
import sys
from pathlib import Path

import click

from experiments.benchmarks.options import OUTPUT, check_width, common, finite


@click.command(
    context_settings={"default_map": {"threads": 1}},
    short_help="Scaling of a step with workers, measured and predicted.",
)
@click.option("--hidden", type=click.IntRange(2), default=64, show_default=True, help="Width of the model.")
@click.option("--layers", type=click.IntRange(1), default=4, show_default=True, help="Layers of the model.")
@click.option("--seq", type=click.IntRange(2), default=256, show_default=True, help="Sequence length in tokens.")
@click.option(
    "--workers",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 2, 4),
    show_default=True,
    help="Number of workers. May be repeated.",
)
@click.option(
    "--bandwidth-gbit",
    type=click.FloatRange(0, min_open=True),
    default=100.0,
    show_default=True,
    callback=finite,
    help="Bandwidth of the predicted network, in Gbit/s.",
)
@click.option(
    "--latency-us",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    callback=finite,
    help="Latency of the predicted network, in microseconds per message.",
)
@common
def scaling(
    hidden: int,
    layers: int,
    seq: int,
    workers: tuple[int, ...],
    bandwidth_gbit: float,
    latency_us: float,
    repeats: int,
    threads: int,
    output: Path,
    as_json: bool,
) -> None:
    """How does a step scale with workers? Measured here, and predicted for 8 to 1024 workers on a given network.

    The rows `independent` are as many processes that exchange nothing: no data-parallel step can be faster.

    \b
    Examples:
      tiny-onn bench scaling
      tiny-onn bench scaling --workers 1 --workers 2 --repeats 3
      tiny-onn bench scaling --hidden 256 --bandwidth-gbit 10 --latency-us 50
    """
    from rich.console import Console

    from experiments.benchmarks import scaling as question
    from experiments.benchmarks.cost_model import Network
    from experiments.benchmarks.report import Progress, publish
    from experiments.benchmarks.scaling_worker import Model
    from tiny_onn.compiling import compiler_problem

    check_width(hidden)
    network = Network(bandwidth_gbit * 1e9 / 8, latency_us * 1e-6)
    with Progress(Console(stderr=True)) as progress:
        result = question.run(
            Model(hidden, layers, seq), workers, threads, repeats, network, compiler_problem(), progress
        )
    publish(result, output, as_json)


@click.command(short_help="Whether the loader keeps up with training.")
@click.option("--hidden", type=click.IntRange(2), default=64, show_default=True, help="Width of the model.")
@click.option("--layers", type=click.IntRange(1), default=6, show_default=True, help="Layers of the model.")
@click.option(
    "--scale-factors",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 10, 100),
    show_default=True,
    help="Factor by which the data set is enlarged. May be repeated.",
)
@common
def data(
    hidden: int,
    layers: int,
    scale_factors: tuple[int, ...],
    repeats: int,
    threads: int,
    output: Path,
    as_json: bool,
) -> None:
    """Does the loader keep up with training, and does its memory stay constant as the data set grows?

    \b
    Examples:
      tiny-onn bench data
      tiny-onn bench data --scale-factors 1 --scale-factors 10 --repeats 3
    """
    from rich.console import Console

    from experiments.benchmarks import data as question
    from experiments.benchmarks.report import Progress, publish
    from pipeline.settings.config import Experiment, ModelConfig

    check_width(hidden)
    experiment = Experiment(
        name="bench-data", model=ModelConfig(hidden=hidden, layers=layers, heads=max(1, hidden // 32))
    )
    with Progress(Console(stderr=True)) as progress:
        result = question.run(experiment, scale_factors, repeats, threads, progress)
    publish(result, output, as_json)


@click.command(short_help="Whether MLflow keeps up with a sweep.")
@click.option("--trials", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Concurrent trials.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Logged steps of each trial.")
@click.option(
    "--every",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    callback=finite,
    help="Seconds per step.",
)
@click.option(
    "--processes", type=click.IntRange(1), default=4, show_default=True, help="Processes that run the trials."
)
@click.option(
    "--store",
    "stores",
    multiple=True,
    help="sqlite, server or postgres. Default: all that are installed. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr.")
@OUTPUT
def tracking(
    trials: int,
    steps: int,
    every: float,
    processes: int,
    stores: tuple[str, ...],
    output: Path,
    as_json: bool,
) -> None:
    """Does delivery to MLflow keep up with many trials, and how long would trials take to log directly?

    \b
    Examples:
      tiny-onn bench tracking
      tiny-onn bench tracking --trials 20 --steps 5 --every 1 --store sqlite
      tiny-onn bench tracking --trials 200 --steps 6 --store postgres
    """
    from rich.console import Console

    from experiments.benchmarks import tracking as question
    from experiments.benchmarks.report import Progress, publish
    from experiments.benchmarks.tracking_load import Load
    from experiments.benchmarks.tracking_stores import STORES

    for name in stores:
        if name not in STORES:
            raise click.BadParameter(f"{name!r}; there are {', '.join(STORES)}", param_hint="--store")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left
    with Progress(Console(stderr=True)) as progress:
        result = question.run(stores or STORES, Load(trials, steps, every, processes), progress)
    publish(result, output, as_json)


@click.command(short_help="Time and memory of a driver and a rank, by trials and rows.")
@click.option("--trials", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Trials of the sweep.")
@click.option("--rows", type=click.IntRange(1), default=200_000, show_default=True, help="Rows to plan batches for.")
@click.option(
    "--ranks",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 64, 256),
    show_default=True,
    help="Number of ranks. May be repeated.",
)
@click.option(
    "--rows-per-group",
    "groups",
    multiple=True,
    type=click.IntRange(1),
    default=(16, 256),
    show_default=True,
    help="Rows per Parquet row group. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr.")
@OUTPUT
def limits(
    trials: int, rows: int, ranks: tuple[int, ...], groups: tuple[int, ...], output: Path, as_json: bool
) -> None:
    """How much time and memory do a driver and a rank need per trial and row? Measures the constants in
    experiments/SCALE.md.

    \b
    Examples:
      tiny-onn bench limits
      tiny-onn bench limits --trials 100 --rows 20000 --ranks 1 --ranks 64
    """
    from rich.console import Console

    from experiments.benchmarks import limits as question
    from experiments.benchmarks.report import Progress, publish

    with Progress(Console(stderr=True)) as progress:
        result = question.run(trials, rows, ranks, groups, progress)
    publish(result, output, as_json)


@click.command(short_help="How much the engine and the number of workers change a run.")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False), default="experiments/ablation.yaml")
@click.option("--arm", "arms", multiple=True, help="An arm. Default: those of the sweep in CONFIG. May be repeated.")
@click.option("--steps", type=click.IntRange(1), default=50, show_default=True, help="Training steps of each run.")
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Replace a setting. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr.")
@OUTPUT
def agreement(
    config: Path, arms: tuple[str, ...], steps: int, changes: tuple[str, ...], output: Path, as_json: bool
) -> None:
    """How much do the engine and the number of workers change a run's losses, parameters and time?

    Every arm is trained on the same global batches with the hooks engine and with the fused engine, each with two DDP
    workers and with one.

    \b
    Examples:
      tiny-onn bench agreement
      tiny-onn bench agreement experiments/ablation.yaml --arm per_token --steps 200
      tiny-onn bench agreement --arm opening --set training.precision=float64
    """
    from rich.console import Console

    from experiments.benchmarks import agreement as question
    from experiments.benchmarks.report import Progress, publish
    from pipeline.settings.changes import parse_changes
    from pipeline.settings.config import replace
    from pipeline.settings.experiment_file import read_experiment
    from pipeline.settings.shipped import find_experiment

    experiment = replace(read_experiment(find_experiment(config)), parse_changes(changes), "--set")
    listed = arms or (experiment.sweep.arms if experiment.sweep else (experiment.training.arm,))
    with Progress(Console(stderr=True)) as progress:
        result = question.run(experiment, listed, steps, progress)
    publish(result, output, as_json)


@click.command(short_help="Cost of a logged step besides training, by the length of the run.")
@click.option(
    "--steps",
    type=click.IntRange(1, 100_000_000),
    multiple=True,
    default=(1_000, 10_000, 100_000, 1_000_000),
    show_default=True,
    help="Number of steps logged before. May be repeated.",
)
@click.option(
    "--evaluate-every", type=click.IntRange(1), default=100, show_default=True, help="Logged steps between evaluations."
)
@click.option("--repeats", type=click.IntRange(1), default=48, show_default=True, help="Repeats per median.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr.")
@OUTPUT
def bookkeeping(steps: tuple[int, ...], evaluate_every: int, repeats: int, output: Path, as_json: bool) -> None:
    """Does logging a step become slower as the run gets longer? Uses generated files of long runs; nothing is trained.

    \b
    Examples:
      tiny-onn bench bookkeeping
      tiny-onn bench bookkeeping --steps 1000 --steps 100000 --repeats 11
    """
    from rich.console import Console

    from experiments.benchmarks import bookkeeping as question
    from experiments.benchmarks.report import Progress, publish

    with Progress(Console(stderr=True)) as progress:
        result = question.run(sorted(set(steps)), evaluate_every, repeats, progress)
    publish(result, output, as_json)


@click.command(short_help="Time that skipping closed experts would save.")
@click.option(
    "--hidden",
    multiple=True,
    type=click.IntRange(2),
    default=(64, 256, 1024, 2048),
    show_default=True,
    help="Width of the model. May be repeated.",
)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Sequences decoded at once.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Repeats per median.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr.")
@OUTPUT
def skipping(hidden: tuple[int, ...], batch: int, repeats: int, threads: int, output: Path, as_json: bool) -> None:
    """How much time would decoding save if the rows of closed experts were not computed?

    \b
    Examples:
      tiny-onn bench skipping
      tiny-onn bench skipping --hidden 2048 --batch 1 --threads 2
    """
    from rich.console import Console

    from experiments.benchmarks import skipping as question
    from experiments.benchmarks.report import Progress, publish

    with Progress(Console(stderr=True)) as progress:
        result = question.run(hidden, batch, repeats, threads, progress)
    publish(result, output, as_json)


@click.command(short_help="Where the wall time of a sweep goes.")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False), default="experiments/smoke.yaml")
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Replace a setting. May be repeated.")
@click.option(
    "--finished",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Run nothing; read the record of CONFIG's sweep in this output folder of `tiny-onn ablate`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr.")
@OUTPUT
def sweep(config: Path, changes: tuple[str, ...], finished: Path | None, output: Path, as_json: bool) -> None:
    """Where does the wall time of a sweep go, from the command to its end?

    Runs the sweep of CONFIG in an empty folder, splits its wall time by phase, for the sweep and each trial, and saves
    a table and a Gantt chart. `wall_over_steps` is the wall time divided by the time of the training steps, spread over
    the cores.

    \b
    Examples:
      tiny-onn bench sweep
      tiny-onn bench sweep experiments/ablation.yaml --set 'sweep.seeds=[0]' --json
      tiny-onn bench sweep experiments/ablation.yaml --finished runs
    """
    import tempfile

    from rich.console import Console

    from experiments.benchmarks import sweep as question
    from experiments.benchmarks.report import Progress, publish
    from pipeline.settings.changes import parse_changes
    from pipeline.settings.config import replace
    from pipeline.settings.experiment_file import read_experiment
    from pipeline.settings.shipped import find_experiment

    path = find_experiment(config)
    name = replace(read_experiment(path), parse_changes(changes), "--set").name
    if finished is not None:
        phases = question.recorded(finished, name)
    else:
        with Progress(Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
            phases = question.run(str(path), name, changes, Path(folder), progress)
    publish(question.result(phases), output, as_json)


COMMANDS: tuple[click.Command, ...] = (scaling, data, tracking, limits, agreement, skipping, bookkeeping, sweep)
