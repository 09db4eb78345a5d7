"""What does meta-learning cost? One training step in every variant: seconds, ratios within one run, peak memory."""

import statistics
from collections.abc import Iterable
from typing import Any

import torch

from experiments.benchmarks.measure import DoesNotFit, free_bytes, peak_bytes, ratio, seconds_in_turn
from experiments.benchmarks.report import Progress, Result, mebibytes, milliseconds
from experiments.benchmarks.variants import COMPILED, Size, Step, build
from tiny_onn.compiling import compiler_problem

AGREEMENT = 1e-2  # of the router's gradients, relative, in float32: Goodness magnifies rounding (float64: 1e-10)


def measure(size: Size, repeats: int, threads: int, names: Iterable[str], progress: Progress) -> dict[str, Any]:
    """By variant: `seconds` (median), every repeat's, `peak_bytes`, `x_plain_compiled`; or why it did not run.

    The variants that learn from Goodness must agree on the router's gradient, or this raises.
    """
    torch.set_num_threads(threads)
    device = torch.device(size.device)
    found: dict[str, Any] = {}
    steps: dict[str, Step] = {}
    for name in names:
        problem = _why_not(name, size, device)
        if problem:
            found[name] = {"not_run": problem}
        else:
            steps[name] = Step(name, size)
    progress.begin(f"hidden {size.hidden}, {size.seq} tokens", len(steps) * (repeats + 3))
    agreement = _check_agreement(steps, progress)
    seconds = seconds_in_turn(steps, repeats, device, progress.step)
    steps.clear()
    base = next((name for name in ("plain_compiled", "plain_eager") if name in seconds), None)
    for name, each in seconds.items():
        progress.step(f"{name}, memory")
        found[name] = {"seconds": statistics.median(each), "all_seconds": each}
        if base:
            found[name][f"x_{base}"] = ratio(seconds, name, base)
        try:
            found[name]["peak_bytes"] = peak_bytes(build, (name, size), threads)
        except DoesNotFit as error:
            found[name]["peak_bytes"] = None
            found[name]["memory_problem"] = str(error)
    return {"variants": found, "router_gradients_agree_to": agreement}


def _why_not(name: str, size: Size, device: torch.device) -> str | None:
    if name in COMPILED and (problem := compiler_problem(device)):
        return problem
    if name == "einsum" and size.einsum_bytes > 0.8 * free_bytes(device):
        return f"does not fit: one layer's gradients take {size.einsum_bytes / 2**30:.1f} GiB"
    return None


def _check_agreement(steps: dict[str, Step], progress: Progress) -> float | None:
    """The largest difference of any variant's router gradients from the hooks', relative to their norm."""
    compared = [name for name in ("fused", "fused_elementwise", "two_pass", "einsum") if name in steps]
    if "hooks" not in steps or not compared:
        return None
    truth = torch.cat([g.flatten() for g in steps["hooks"].router_gradients()])
    worst = 0.0
    for name in compared:
        progress.step(f"{name}, gradients")
        found = torch.cat([g.flatten() for g in steps[name].router_gradients()])
        worst = max(worst, float((found - truth).norm() / truth.norm()))
        if not worst < (0.1 if steps[name].size.autocast else AGREEMENT):
            raise AssertionError(f"{name} and hooks differ in the router's gradients by {worst:.1e} of their norm")
    return worst


def run(sizes: list[Size], repeats: int, threads: int, names: tuple[str, ...], progress: Progress) -> Result:
    """The benchmark over several sizes."""
    cells = [(size, measure(size, repeats, threads, names, progress)) for size in sizes]
    rows, series = [], {}
    for size, cell in cells:
        for name, each in cell["variants"].items():
            place = [str(size.hidden), str(size.seq), name]
            if "not_run" in each:
                rows.append([*place, each["not_run"], "", "", ""])
                continue
            plain = cell["variants"].get("plain_compiled", {})
            memory = each["peak_bytes"]
            rows.append(
                [
                    *place,
                    milliseconds(each["seconds"]),
                    f"{each['x_plain_compiled']:.2f}" if "x_plain_compiled" in each else "",
                    mebibytes(memory) if memory else each["memory_problem"],
                    f"{memory / plain['peak_bytes']:.2f}" if memory and plain.get("peak_bytes") else "",
                ]
            )
            label = f"{size.hidden} / {size.seq}"
            series.setdefault(name, {})[label] = each.get("x_plain_compiled", float("nan"))
    first = cells[0][0]
    return Result(
        question="step",
        title=f"A training step, {first.layers} layers, {threads} threads, {first.device}, median of {repeats}",
        columns=["hidden", "tokens", "variant", "ms", "x plain compiled", "peak MiB", "x plain compiled"],
        rows=rows,
        plot_label="time / plain compiled step (hidden / tokens)",
        series=series,
        data={
            "layers": first.layers,
            "threads": threads,
            "device": first.device,
            "sizes": [{"hidden": size.hidden, "seq": size.seq, **cell} for size, cell in cells],
            **cells[0][1],
        },
    )
