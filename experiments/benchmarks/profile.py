"""Where does the time of a step go? What torch's profiler sees of each variant, by kind of work."""

from statistics import median
from typing import Any

import click
import torch

from experiments.benchmarks.kinds_of_work import KINDS, by_kind
from experiments.benchmarks.report import Progress, Result, milliseconds
from experiments.benchmarks.variants import COMPILED, Size, Step
from tiny_onn.compiling import compiler_problem


def measure(size: Size, repeats: int, threads: int, names: tuple[str, ...], progress: Progress) -> dict[str, Any]:
    """By variant: `seconds` of a step by kind, medians over `repeats` profiles of three steps, taken in turn."""
    torch.set_num_threads(threads)
    torch.compiler.reset()  # as in `step`
    device = torch.device(size.device)
    steps = {name: Step(name, size) for name in names if not (name in COMPILED and compiler_problem(device))}
    if not steps:
        raise click.UsageError(f"none of {', '.join(names)} can run here: {compiler_problem(device)}")
    progress.begin(f"hidden {size.hidden}, {size.seq} tokens", len(steps) * (repeats + 1))
    for name, step in steps.items():
        progress.step(f"{name}, warm-up")
        for _ in range(3):
            step()
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            progress.step(name)
            kinds, total = by_kind(step, 3, device)
            seen[name].append({**kinds, "whole step": total})
    return {
        name: {kind: median(each[kind] for each in profiles) for kind in (*KINDS, "whole step")}
        for name, profiles in seen.items()
    }


def run(sizes: list[Size], repeats: int, threads: int, names: tuple[str, ...], progress: Progress) -> Result:
    """The benchmark over several sizes; the first variant is what the others are compared with."""
    cells = [(size, measure(size, repeats, threads, names, progress)) for size in sizes]
    shown = list(cells[0][1])
    base = shown[0]
    rows, series = [], {}
    for size, cell in cells:
        for kind in (*KINDS, "whole step"):
            row = [str(size.hidden), str(size.seq), kind]
            for name in shown:
                more = "" if name == base else f" ({1e3 * (cell[name][kind] - cell[base][kind]):+.1f})"
                row.append(milliseconds(cell[name][kind]) + more)
            rows.append(row)
        for name in shown:
            series[f"{name}, {size.hidden} / {size.seq}"] = {kind: 1e3 * cell[name][kind] for kind in KINDS}
    first = cells[0][0]
    return Result(
        question="profile",
        title=f"Milliseconds of a step by kind of work, {first.layers} layers, {threads} threads, {first.device}",
        columns=["hidden", "tokens", "what", *shown],
        rows=rows,
        plot_label="ms",
        places="kind of work",
        series=series,
        data={
            "layers": first.layers,
            "threads": threads,
            "device": first.device,
            "sizes": [{"hidden": size.hidden, "seq": size.seq, "seconds": cell} for size, cell in cells],
        },
        notes=[f"In brackets: more, or less, than {base}. Profiling itself slows a step, small ones most."],
    )
