"""What does meta-learning cost? One training step in every variant: seconds, ratios within one run, peak memory."""

from typing import Any

from experiments.benchmarks.report import Progress, Result, mebibytes, milliseconds
from experiments.benchmarks.step_times import measure
from experiments.benchmarks.variants import DEFAULT, DEFAULT_OF_LONG_RUNS, Size


def run(sizes: list[Size], repeats: int, threads: int, names: tuple[str, ...], progress: Progress) -> Result:
    """The benchmark over several sizes."""
    cells = [(size, measure(size, repeats, threads, names, progress)) for size in sizes]
    rows: list[list[str]] = []
    series: dict[str, dict[str, float]] = {}
    for size, cell in cells:
        base = cell["variants"].get(cell["base"], {})
        for name, each in cell["variants"].items():
            place = [str(size.hidden), str(size.seq), name]
            if "not_run" in each:
                rows.append([*place, each["not_run"], "", "", ""])
                continue
            memory, least = each["peak_bytes"], base.get("peak_bytes")
            rows.append(
                [
                    *place,
                    milliseconds(each["seconds"]),
                    f"{each['x_base']:.2f}",
                    mebibytes(memory) if memory else each["memory_problem"],
                    f"{memory / least:.2f}" if memory and least else "",
                ]
            )
            series.setdefault(name, {})[f"{size.hidden} / {size.seq}"] = each["x_base"]
    first = cells[0][0]
    against = cells[0][1]["base"] or "base"
    return Result(
        question="step",
        title=f"A training step, {first.layers} layers, {threads} threads, {first.device}, median of {repeats}",
        columns=["hidden", "tokens", "variant", "ms", "x", "peak MiB", "x"],
        rows=rows,
        plot_label=f"time / {against}",
        places="hidden / tokens",
        series=series,
        data={
            "layers": first.layers,
            "threads": threads,
            "device": first.device,
            "sizes": [{"hidden": size.hidden, "seq": size.seq, **_with_default(cell)} for size, cell in cells],
            **_with_default(cells[0][1]),
        },
        notes=[f"x: time, and peak memory, over {against}'s in the same run."],
    )


def _with_default(cell: dict[str, Any]) -> dict[str, Any]:
    """The measurements of a size, and those of the default once more: as `default`, and `default_of_long_runs`, if
    they were among the variants."""
    variants = cell["variants"]
    names = {"default": DEFAULT, "default_of_long_runs": DEFAULT_OF_LONG_RUNS}
    again = {title: {**variants[name], "variant": name} for title, name in names.items() if name in variants}
    return {**cell, "variants": {**variants, **again}}
