"""What does extracting per-token learning costs cost? Whole training steps, factored norms against the einsum.

    python -m experiments.benchmarks.extraction
    python -m experiments.benchmarks.extraction --hidden 64 --hidden 128 --seq 256 --repeats 3

For every width, the same model takes steps with the arms `none` (no meta-learning), `per_token` (factored norms) and
`per_token_einsum` (ADR-0004's own einsum, in chunks), in turn, in one process; the medians of their times are compared.
Peak memory is that of a process of its own for each arm, less what the process held before its first step.
"""

import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from tiny_onn.dynamics import LearningDynamics
from tiny_onn.layers import computation_parameters, router_parameters
from tiny_onn.learning_cost import learning_cost
from tiny_onn.model import GridTransformer

ARMS = ("none", "per_token", "per_token_einsum")
VOCABULARY = 16


def stepper(arm: str, hidden: int, layers: int, seq: int) -> Callable[[], None]:
    """A function that takes one training step of one sequence of random tokens."""
    torch.manual_seed(0)
    model = GridTransformer(
        vocabulary=VOCABULARY,
        coordinates=32,
        hidden=hidden,
        layers=layers,
        heads=max(1, hidden // 32),
        router_learns_from_task=arm == "none",
    )
    cost = learning_cost(arm)
    dynamics = LearningDynamics(
        model,
        cost,
        torch.optim.AdamW(computation_parameters(model), lr=1e-3, fused=True),
        torch.optim.AdamW(router_parameters(model), lr=1e-3, fused=True),
    )
    tokens = torch.randint(VOCABULARY, (1, seq))

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(tokens, tokens, tokens).flatten(0, 1), tokens.flatten())

    def step() -> None:
        if cost is None:
            dynamics.compute_and_apply_gradients(loss(), None, labels=seq)
            return
        with dynamics.capture() as captured:
            dynamics.compute_and_apply_gradients(loss(), captured, labels=seq)

    return step


def peak_megabytes(arm: str, hidden: int, layers: int, seq: int, threads: int) -> float:
    """Of three steps, in a process of its own, above what it held before them."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (arm, hidden, layers, seq, threads))


def _peak(arm: str, hidden: int, layers: int, seq: int, threads: int) -> float:
    torch.set_num_threads(threads)
    step = stepper("none", 8, 1, 8)
    step()  # what torch itself takes at its first step
    before = _high_water_mark()
    step = stepper(arm, hidden, layers, seq)
    for _ in range(3):
        step()
    return (_high_water_mark() - before) / 1024


def _high_water_mark() -> int:
    """Peak memory of this process in kB. On Linux not getrusage's, which a process inherits from its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # macOS counts bytes


def measure(hidden: int, layers: int, seq: int, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """Median seconds a step and peak megabytes, by arm."""
    torch.set_num_threads(threads)
    steps = {arm: stepper(arm, hidden, layers, seq) for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repeat in range(repeats + 1):
        for arm, step in steps.items():
            started = time.perf_counter()
            step()
            if repeat:  # the first is warm-up
                seconds[arm].append(time.perf_counter() - started)
    return {
        arm: {
            "seconds": statistics.median(seconds[arm]),
            "peak_megabytes": peak_megabytes(arm, hidden, layers, seq, threads),
        }
        for arm in ARMS
    }


@click.command()
@click.option("--hidden", multiple=True, type=click.IntRange(2), default=(64, 128, 256), show_default=True)
@click.option("--layers", type=click.IntRange(1), default=6, show_default=True)
@click.option("--seq", type=click.IntRange(2), default=256, show_default=True, help="Tokens of a step.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object last.")
def main(hidden: tuple[int, ...], layers: int, seq: int, repeats: int, threads: int, as_json: bool) -> None:
    """Times whole training steps with and without per-token learning costs."""
    found = {width: measure(width, layers, seq, repeats, threads) for width in hidden}
    table = Table(title=f"A training step: {layers} layers, {seq} tokens, {threads} threads, median of {repeats}")
    for column in ("hidden", "arm", "ms", "x none", "x per_token", "peak MB", "x per_token"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for width, arms in found.items():
        for arm, each in arms.items():
            own = arms["per_token"]
            table.add_row(
                str(width),
                arm,
                f"{each['seconds'] * 1e3:.0f}",
                f"{each['seconds'] / arms['none']['seconds']:.2f}",
                f"{each['seconds'] / own['seconds']:.2f}",
                f"{each['peak_megabytes']:.0f}",
                f"{each['peak_megabytes'] / own['peak_megabytes']:.2f}",
            )
    Console().print(table)
    if as_json:
        click.echo(json.dumps({"layers": layers, "seq": seq, "threads": threads, "hidden": found}))


if __name__ == "__main__":
    main()
