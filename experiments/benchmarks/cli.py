"""`tiny-onn bench`: what things cost, one question at a time. Runs without Ray and MLflow, on a CPU or a GPU:

python -m experiments.benchmarks step --device cuda
"""

from pathlib import Path

import click

from experiments.benchmarks.cli_around import COMMANDS as AROUND_A_STEP
from experiments.benchmarks.options import check_device, check_variants, check_width, common, sizes_to_run


@click.group(
    short_help="Measure the cost of meta-learning.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def bench() -> None:
    """Measure the cost of meta-learning, one question per command.

    \b
    Examples:
      tiny-onn bench step                                  a training step in every variant
      tiny-onn bench step --hidden 64 --hidden 256 --seq 256 --seq 1024
      tiny-onn bench step --device cuda --hidden 2048 --seq 4096 --bfloat16
      tiny-onn bench extraction                            per-token learning costs, compared with other libraries
      tiny-onn bench tracking --trials 200                 whether MLflow keeps up with a sweep

    Every benchmark prints a table and saves it with a plot and all numbers. Times are medians over interleaved repeats;
    compare only ratios within one run.
    """


@bench.command(short_help="Cost that meta-learning adds to a training step.")
@sizes_to_run
@common
@click.option("--bfloat16", is_flag=True, help="Forward passes under bfloat16 autocast.")
@click.option("--variant", "variants", multiple=True, help="Run only this variant. Default: all. May be repeated.")
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
    """How much does meta-learning add to a training step? Compares the time and memory of all variants.

    \b
    Examples:
      tiny-onn bench step
      tiny-onn bench step --hidden 64 --hidden 256 --seq 256 --seq 1024 --repeats 3
      tiny-onn bench step --variant plain_compiled --variant fused --json
      tiny-onn bench step --device cuda --hidden 2048 --seq 4096 --bfloat16
    """
    from rich.console import Console

    from experiments.benchmarks import step as question
    from experiments.benchmarks.report import Progress, publish
    from experiments.benchmarks.variants import NAMES, Size

    check_variants(variants)
    check_device(device)
    for width in hidden:
        check_width(width)
    sizes = [Size(width, layers, tokens, device, bfloat16) for width in hidden for tokens in seq]
    with Progress(Console(stderr=True)) as progress:
        result = question.run(sizes, repeats, threads, variants or NAMES, progress)
    publish(result, output, as_json)


@bench.command(short_help="Where the time of a step goes.")
@sizes_to_run
@common
@click.option("--bfloat16", is_flag=True, help="Forward passes under bfloat16 autocast.")
@click.option("--variant", "variants", multiple=True, help="A variant; the first is the reference. May be repeated.")
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
    """Where does the time of a step go? By default, compares the single-pass engine with the compiled plain step.

    \b
    Examples:
      tiny-onn bench profile
      tiny-onn bench profile --hidden 64 --seq 256 --seq 1024 --repeats 5
      tiny-onn bench profile --variant plain_compiled --variant fused --device cuda
    """
    from rich.console import Console

    from experiments.benchmarks import profile as question
    from experiments.benchmarks.report import Progress, publish
    from experiments.benchmarks.variants import Size

    check_variants(variants)
    check_device(device)
    for width in hidden:
        check_width(width)
    sizes = [Size(width, layers, tokens, device, bfloat16) for width in hidden for tokens in seq]
    with Progress(Console(stderr=True)) as progress:
        result = question.run(sizes, repeats, threads, variants or ("plain_compiled", "fused", "hooks"), progress)
    publish(result, output, as_json)


@bench.command(short_help="Time and memory to compute per-token learning costs.")
@click.option(
    "--hidden",
    multiple=True,
    type=click.IntRange(2),
    default=(512,),
    show_default=True,
    help="Layer width. May be repeated.",
)
@click.option(
    "--seq", multiple=True, type=click.IntRange(2), default=(1024,), show_default=True, help="Tokens. May be repeated."
)
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
    """How expensive are the per-token learning costs of one layer? For Opacus and BackPACK: pip install .[bench]

    \b
    Examples:
      tiny-onn bench extraction
      tiny-onn bench extraction --hidden 128 --hidden 512 --seq 256 --repeats 5
      tiny-onn bench extraction --device cuda --json
    """
    from rich.console import Console

    from experiments.benchmarks import extraction as question
    from experiments.benchmarks.extraction_methods import LayerSize
    from experiments.benchmarks.report import Progress, publish

    check_device(device)
    sizes = [LayerSize(width, tokens, device) for width in hidden for tokens in seq]
    with Progress(Console(stderr=True)) as progress:
        result = question.run(sizes, repeats, threads, progress)
    publish(result, output, as_json)


for each in AROUND_A_STEP:
    bench.add_command(each)
