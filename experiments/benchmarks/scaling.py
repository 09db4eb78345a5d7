"""How does a step scale with workers, with Goodness and without? Measured on this machine, then predicted for many.

Weak scaling gives every worker one sequence; strong scaling shares out a fixed number of them. `independent` workers
have one sequence each and send nothing: what they lose against one worker, they lose to shared cores, caches and
memory, and no data-parallel step of as many workers can be faster. All groups of workers stand at once and take their
steps in turn, so that ratios are of one run. The prediction is `cost_model`'s, from the compute that one worker needs
and the messages that a step was seen to send.
"""

import math
import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from experiments.benchmarks.cost_model import Network, StepCost, efficiency, fit_network, step_seconds
from experiments.benchmarks.report import Progress, Result
from experiments.benchmarks.scaling_report import PAIR, PREDICTED, measured_row, predicted_row, scaling_notes
from experiments.benchmarks.scaling_worker import VARIANTS, Model, Traffic, Worker
from experiments.benchmarks.workers import WorkerGroup

MESSAGES = (4 * 2**10, 64 * 2**10, 2**20, 8 * 2**20)  # bytes of the all-reduces that the network is fitted to
WARM_UP = 2


@dataclass(frozen=True)
class Cell:
    """Steps of one variant by one group of workers: `sequences` on each of them.

    `scaling` is "weak", "strong" or "independent".
    """

    scaling: str
    workers: int
    variant: str
    sequences: int


@dataclass(frozen=True)
class Times:
    """Of every repeat: seconds of the slowest worker's step, and of its backward pass."""

    steps: list[float]
    backwards: list[float]

    @property
    def step(self) -> float:
        """The median step."""
        return statistics.median(self.steps)


@dataclass(frozen=True)
class Measurements:
    """All that was measured."""

    times: dict[Cell, Times]
    traffic: dict[tuple[int, str], Traffic]
    all_reduces: dict[int, list[float]]


def cells(workers: Sequence[int]) -> list[Cell]:
    """What is measured: one worker in any case, to which others are compared."""
    counts = sorted({1, *workers})
    whole = math.lcm(*counts)
    return [
        Cell(scaling, count, variant, whole // count if scaling == "strong" else 1)
        for scaling in ("weak", "independent", "strong")
        for count in counts
        if not (scaling == "independent" and count == 1)  # the same as weak
        for variant in VARIANTS
    ]


def measure(
    model: Model, workers: Sequence[int], threads: int, repeats: int, use_compiler: bool, progress: Progress
) -> Measurements:
    """Times of all cells and of bare all-reduces, in turn, and what a step of each variant sends."""
    every = cells(workers)
    times = {cell: Times([], []) for cell in every}
    all_reduces: dict[int, list[float]] = {size: [] for size in MESSAGES}
    with ExitStack() as stack:
        groups = {
            size: stack.enter_context(WorkerGroup(size, Worker, (model, use_compiler), threads))
            for size in sorted({1, PAIR, *workers})
        }
        alone = [groups[1]] + [
            stack.enter_context(WorkerGroup(1, Worker, (model, use_compiler), threads)) for _ in range(1, max(workers))
        ]
        progress.begin("workers", (WARM_UP + repeats) * (len(every) + len(MESSAGES)) + len(groups) * len(VARIANTS))
        for repeat in range(-WARM_UP, repeats):
            for cell in every:
                progress.step(f"{cell.variant}, {cell.workers} workers, {cell.scaling}")
                together = alone[: cell.workers] if cell.scaling == "independent" else [groups[cell.workers]]
                for group in together:
                    group.ask("step", cell.variant, cell.sequences)
                seconds = [each for group in together for each in group.answers("step")]
                if repeat >= 0:
                    slowest = max(seconds)
                    times[cell].steps.append(slowest[0])
                    times[cell].backwards.append(slowest[1])
            for size in MESSAGES:
                progress.step(f"all-reduce of {size} bytes")
                slowest_worker = max(groups[PAIR].call("all_reduce", size))
                if repeat >= 0:
                    all_reduces[size].append(slowest_worker)
        traffic = {}
        for size, group in groups.items():
            for variant in VARIANTS:
                progress.step(f"{variant}, {size} workers, messages")
                traffic[size, variant] = group.call("traffic", variant)[0]
    return Measurements(times, traffic, all_reduces)


def step_costs(measurements: Measurements) -> dict[str, StepCost]:
    """By variant: one worker's compute with one sequence, and the messages of two workers' step."""
    costs = {}
    for variant in VARIANTS:
        times, sent = measurements.times[Cell("weak", 1, variant, 1)], measurements.traffic[PAIR, variant]
        costs[variant] = StepCost(times.step, statistics.median(times.backwards), sent.in_backward, sent.apart)
    return costs


def run(
    model: Model,
    workers: Sequence[int],
    threads: int,
    repeats: int,
    network: Network,
    compiler_problem: str | None,
    progress: Progress,
) -> Result:
    """The benchmark. `network` is the one predicted for; `compiler_problem` is why kernels run eagerly, if they do."""
    measurements = measure(model, workers, threads, repeats, compiler_problem is None, progress)
    here = fit_network(MESSAGES, [statistics.median(measurements.all_reduces[size]) for size in MESSAGES], PAIR)
    costs = step_costs(measurements)
    cores = len(os.sched_getaffinity(0))
    measured = [_measured(cell, times, measurements, cores, threads) for cell, times in measurements.times.items()]
    predicted = [_predicted(variant, cost, count, network) for variant, cost in costs.items() for count in PREDICTED]
    check = _check(measured, costs, here)
    return Result(
        question="scaling",
        title=(
            f"Scaling, hidden {model.hidden}, {model.layers} layers, sequences of {model.seq} tokens, "
            f"{threads} threads a worker, {cores} cores, median of {repeats}"
        ),
        columns=["what", "variant", "workers", "ms", "efficiency", "messages", "KiB"],
        rows=[measured_row(each) for each in measured] + [predicted_row(each, costs) for each in predicted],
        plot_label="predicted parallel efficiency, weak scaling",
        places="workers",
        series={
            f"{variant}, {how.replace('_', ' ')}": {
                str(each["workers"]): each[how]["efficiency"] for each in predicted if each["variant"] == variant
            }
            for variant in VARIANTS
            for how in ("no_overlap", "full_overlap")
        },
        data={
            "hidden": model.hidden,
            "layers": model.layers,
            "seq": model.seq,
            "threads": threads,
            "cores": cores,
            "compiled": compiler_problem is None,
            "measured": measured,
            "fit": {
                "bandwidth_gbit": here.gigabits,
                "latency_us": here.latency * 1e6,
                "all_reduce_seconds": {str(size): seconds for size, seconds in measurements.all_reduces.items()},
                "costs": {variant: vars(cost) for variant, cost in costs.items()},
                "check": check,
            },
            "network": {"bandwidth_gbit": network.gigabits, "latency_us": network.latency * 1e6},
            "predicted": predicted,
        },
        notes=scaling_notes(measured, check, costs, here, network, cores, compiler_problem),
    )


def _measured(cell: Cell, times: Times, measurements: Measurements, cores: int, threads: int) -> dict[str, Any]:
    alone = measurements.times[next(each for each in measurements.times if _is_base(each, cell))]
    shares = cell.workers if cell.scaling == "strong" else 1
    sent = Traffic((), ()) if cell.scaling == "independent" else measurements.traffic[cell.workers, cell.variant]
    floor = measurements.times.get(replace(cell, scaling="independent")) if cell.scaling == "weak" else None
    return {
        "scaling": cell.scaling,
        "variant": cell.variant,
        "workers": cell.workers,
        "sequences_a_worker": cell.sequences,
        "seconds": times.step,
        "all_seconds": times.steps,
        "efficiency": statistics.median(a / b / shares for a, b in zip(alone.steps, times.steps, strict=True)),
        "of_floor": floor and statistics.median(a / b for a, b in zip(floor.steps, times.steps, strict=True)),
        "collectives": sent.collectives,
        "bytes": sent.bytes,
        "more_workers_than_cores": cell.workers * threads > cores,
    }


def _is_base(each: Cell, cell: Cell) -> bool:
    """Is `each` the one worker that `cell` is compared with?"""
    scaling = "strong" if cell.scaling == "strong" else "weak"
    return (each.scaling, each.variant, each.workers) == (scaling, cell.variant, 1)


def _predicted(variant: str, cost: StepCost, workers: int, network: Network) -> dict[str, Any]:
    bounds = {
        name: {
            "seconds": step_seconds(cost, workers, network, overlap=overlap),
            "efficiency": efficiency(cost, workers, network, overlap=overlap),
        }
        for name, overlap in (("no_overlap", False), ("full_overlap", True))
    }
    return {"variant": variant, "workers": workers, **bounds}


def _check(measured: list[dict[str, Any]], costs: dict[str, StepCost], here: Network) -> dict[str, dict[str, float]]:
    """What the model says of two workers on this machine, beside what they took; empty where they were not measured."""
    return {
        each["variant"]: {
            "measured": each["seconds"],
            "no_overlap": step_seconds(costs[each["variant"]], PAIR, here, overlap=False),
            "full_overlap": step_seconds(costs[each["variant"]], PAIR, here, overlap=True),
        }
        for each in measured
        if (each["scaling"], each["workers"]) == ("weak", PAIR)
    }
