"""`tiny-onn bench`: what things cost, one question at a time. Runs without Ray and MLflow, on a CPU or a GPU:

python -m experiments.benchmarks step --device cuda
"""

import signal
import sys
from pathlib import Path

import click

from experiments.benchmarks.options import OUTPUT, check_device, check_variants, check_width, common, sizes_to_run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def bench() -> None:
    """Measures what meta-learning costs, one question at a time.

    \b
    Examples:
      tiny-onn bench step                                  a training step in every variant
      tiny-onn bench step --hidden 64 --hidden 256 --seq 256 --seq 1024
      tiny-onn bench step --device cuda --hidden 2048 --seq 4096 --bfloat16
      tiny-onn bench extraction                            per-token learning costs by other means, other libraries'
      tiny-onn bench tracking --trials 200                 whether MLflow keeps up with a sweep

    Every benchmark prints a table and files it with a plot and all numbers. Times are medians of repeats that are taken
    in turn; compare the ratios, which are of one run.
    """


@bench.command()
@sizes_to_run
@common
@click.option("--bfloat16", is_flag=True, help="Forward passes under bfloat16 autocast.")
@click.option("--variant", "variants", multiple=True, help="Only these; all by default.")
def step(
    hidden: tuple[int, ...],
    layers: int,
    seq: tuple[int, ...],
    device: str,
    repeats: int,
    threads: int,
    output: Path,
    as_json: bool,
    bfloat16: bool,
    variants: tuple[str, ...],
) -> None:
    """What does meta-learning add to a training step?"""
    from rich.console import Console

    from experiments.benchmarks import step as question
    from experiments.benchmarks.report import Progress, tell
    from experiments.benchmarks.variants import NAMES, Size

    check_variants(variants)
    check_device(device)
    for width in hidden:
        check_width(width)
    sizes = [Size(width, layers, tokens, device, bfloat16) for width in hidden for tokens in seq]
    with Progress(Console(stderr=True)) as progress:
        result = question.run(sizes, repeats, threads, variants or NAMES, progress)
    tell(result, output, as_json)


@bench.command()
@sizes_to_run
@common
@click.option("--bfloat16", is_flag=True, help="Forward passes under bfloat16 autocast.")
@click.option("--variant", "variants", multiple=True, help="The first is what others are compared with.")
def profile(
    hidden: tuple[int, ...],
    layers: int,
    seq: tuple[int, ...],
    device: str,
    repeats: int,
    threads: int,
    output: Path,
    as_json: bool,
    bfloat16: bool,
    variants: tuple[str, ...],
) -> None:
    """Where does the time of a step go? By default: what the single pass adds to the compiled plain step."""
    from rich.console import Console

    from experiments.benchmarks import profile as question
    from experiments.benchmarks.report import Progress, tell
    from experiments.benchmarks.variants import Size

    check_variants(variants)
    check_device(device)
    for width in hidden:
        check_width(width)
    sizes = [Size(width, layers, tokens, device, bfloat16) for width in hidden for tokens in seq]
    with Progress(Console(stderr=True)) as progress:
        result = question.run(sizes, repeats, threads, variants or ("plain_compiled", "fused", "hooks"), progress)
    tell(result, output, as_json)


@bench.command()
@click.option("--hidden", multiple=True, type=click.IntRange(2), default=(512,), show_default=True, help="Width.")
@click.option("--seq", multiple=True, type=click.IntRange(2), default=(1024,), show_default=True, help="Tokens.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@common
def extraction(
    hidden: tuple[int, ...],
    seq: tuple[int, ...],
    device: str,
    repeats: int,
    threads: int,
    output: Path,
    as_json: bool,
) -> None:
    """What does it cost to get the per-token learning costs of one layer? Opacus and BackPACK: pip install .[bench]"""
    from rich.console import Console

    from experiments.benchmarks import extraction as question
    from experiments.benchmarks.extraction_methods import LayerSize
    from experiments.benchmarks.report import Progress, tell

    check_device(device)
    sizes = [LayerSize(width, tokens, device) for width in hidden for tokens in seq]
    with Progress(Console(stderr=True)) as progress:
        result = question.run(sizes, repeats, threads, progress)
    tell(result, output, as_json)


@bench.command(context_settings={"default_map": {"threads": 1}})
@click.option("--hidden", type=click.IntRange(2), default=64, show_default=True)
@click.option("--layers", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seq", type=click.IntRange(2), default=256, show_default=True, help="Tokens of a sequence.")
@click.option("--workers", multiple=True, type=click.IntRange(1), default=(1, 2, 4), show_default=True)
@click.option("--bandwidth-gbit", type=click.FloatRange(0, min_open=True), default=100.0, show_default=True)
@click.option("--latency-us", type=click.FloatRange(0), default=10.0, show_default=True)
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
    """How does a step scale with workers, here and, predicted, on 8 to 1024 over a given network?"""
    from rich.console import Console

    from experiments.benchmarks import scaling as question
    from experiments.benchmarks.cost_model import Network
    from experiments.benchmarks.report import Progress, tell
    from experiments.benchmarks.scaling_worker import Model
    from tiny_onn.compiling import compiler_problem

    check_width(hidden)
    network = Network(bandwidth_gbit * 1e9 / 8, latency_us * 1e-6)
    with Progress(Console(stderr=True)) as progress:
        result = question.run(
            Model(hidden, layers, seq), workers, threads, repeats, network, compiler_problem(), progress
        )
    tell(result, output, as_json)


@bench.command()
@click.option("--hidden", type=click.IntRange(2), default=64, show_default=True)
@click.option("--layers", type=click.IntRange(1), default=6, show_default=True)
@click.option(
    "--scale-factors", multiple=True, type=click.IntRange(1), default=(1, 10, 100), show_default=True, help="Sizes."
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
    """Can the loader keep up with training, and does it stay small as the data set grows?"""
    from rich.console import Console

    from experiments.benchmarks import data as question
    from experiments.benchmarks.report import Progress, tell
    from pipeline.settings.config import Experiment, ModelConfig

    check_width(hidden)
    experiment = Experiment(
        name="bench-data", model=ModelConfig(hidden=hidden, layers=layers, heads=max(1, hidden // 32))
    )
    with Progress(Console(stderr=True)) as progress:
        result = question.run(experiment, scale_factors, repeats, threads, progress)
    tell(result, output, as_json)


@bench.command()
@click.option("--trials", type=click.IntRange(1, 10_000), default=200, show_default=True, help="At once.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Logged, by each trial.")
@click.option(
    "--every", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="Seconds a step."
)
@click.option("--processes", type=click.IntRange(1), default=4, show_default=True, help="That the trials log from.")
@click.option("--store", "stores", multiple=True, help="sqlite, server or postgres; all that are there by default.")
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
    """Does the courier keep up with many trials, and what would it cost them to log by themselves?"""
    from rich.console import Console

    from experiments.benchmarks import tracking as question
    from experiments.benchmarks.report import Progress, tell
    from experiments.benchmarks.tracking_load import Load
    from experiments.benchmarks.tracking_stores import STORES

    for name in stores:
        if name not in STORES:
            raise click.BadParameter(f"{name!r}; there are {', '.join(STORES)}", param_hint="--store")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left
    with Progress(Console(stderr=True)) as progress:
        result = question.run(stores or STORES, Load(trials, steps, every, processes), progress)
    tell(result, output, as_json)


@bench.command()
@click.option("--trials", type=click.IntRange(1, 10_000), default=1000, show_default=True)
@click.option("--rows", type=click.IntRange(1), default=200_000, show_default=True, help="That are planned.")
@click.option("--ranks", multiple=True, type=click.IntRange(1), default=(1, 64, 256), show_default=True)
@click.option("--rows-per-group", "groups", multiple=True, type=click.IntRange(1), default=(16, 256), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr.")
@OUTPUT
def limits(
    trials: int, rows: int, ranks: tuple[int, ...], groups: tuple[int, ...], output: Path, as_json: bool
) -> None:
    """What do a driver and a rank take, for each trial and row? The constants of experiments/SCALE.md."""
    from rich.console import Console

    from experiments.benchmarks import limits as question
    from experiments.benchmarks.report import Progress, tell

    with Progress(Console(stderr=True)) as progress:
        result = question.run(trials, rows, ranks, groups, progress)
    tell(result, output, as_json)
