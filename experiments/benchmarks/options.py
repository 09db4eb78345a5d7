"""The options that several benchmarks have, and what is refused of them before anything is measured."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_FOLDER = Path("runs/bench")


def _made(_: click.Context, __: click.Parameter, folder: Path) -> Path:
    """The folder, made at once: that it cannot be is better known before the measurements than after them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # it may be there, and not be written to
    except OSError as error:
        raise click.BadParameter(
            f"{folder} cannot be used ({error.strerror}); a folder that can be written to"
        ) from None
    return folder


def finite(_: click.Context, __: click.Parameter, value: float) -> float:
    """The number, where it is one: a range lets `nan` and `inf` through."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number")
    return value


OUTPUT = click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=_FOLDER,
    show_default=True,
    callback=_made,
    help="Folder for the table, the plot and the numbers.",
)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every benchmark of steps."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr."),
        OUTPUT,
        click.option("--threads", type=click.IntRange(1, 1024), default=2, show_default=True, help="CPU threads."),
        click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Repeats per median."),
    ):
        command = option(command)
    return command


def sizes_to_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for the models' sizes and their device."""
    for option in (
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option(
            "--seq",
            multiple=True,
            type=click.IntRange(2),
            default=(512,),
            show_default=True,
            help="Sequence length in tokens. May be repeated.",
        ),
        click.option("--layers", type=click.IntRange(1), default=6, show_default=True, help="Layers of the model."),
        click.option(
            "--hidden",
            multiple=True,
            type=click.IntRange(2),
            default=(256,),
            show_default=True,
            help="Width of the model. May be repeated.",
        ),
    ):
        command = option(command)
    return command


def check_variants(variants: tuple[str, ...]) -> None:
    """Refuses an unknown variant."""
    from experiments.benchmarks.variants import NAMES

    for name in variants:
        if name not in NAMES:
            raise click.BadParameter(f"{name!r}; there are {', '.join(NAMES)}", param_hint="--variant")


def check_device(device: str) -> None:
    """Refuses a device that does not exist."""
    import torch

    try:
        parsed = torch.device(device)
    except RuntimeError:
        parsed = torch.device("meta")
    if parsed.type not in ("cpu", "cuda"):
        raise click.BadParameter(f"{device!r} is no device; cpu, cuda or cuda:N", param_hint="--device")
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("cuda is asked for, but torch finds no GPU here", param_hint="--device")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise click.BadParameter(f"{device} is not among the {torch.cuda.device_count()} GPUs", param_hint="--device")


def check_width(hidden: int) -> None:
    """Refuses a width that cannot be cut into heads of 32, or one of less, of even width."""
    heads = max(1, hidden // 32)
    if hidden % (2 * heads):
        near = hidden // (2 * heads) * 2 * heads
        raise click.BadParameter(
            f"{hidden} cannot be cut into {heads} heads of even width; {near} can", param_hint="--hidden"
        )
