"""What would decoding save, if the rows of closed experts were not computed? One layer, one token of each sequence."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from experiments.benchmarks.report import Progress, Result
from tiny_onn.gates import experts_of
from tiny_onn.layers import SparseProtoLinear

DENSITIES = (0.01, 0.05, 0.2, 0.5, 1.0)
_SECONDS = 0.05  # of one measurement, at least


def skipping(layer: SparseProtoLinear, x: Tensor) -> Tensor:
    """The layer's masked output [n, o] for x [n, i], with the rows of W of each token's open experts alone.

    The router's product is whole: which experts are open is not known without it.
    """
    routing = layer.routing(x, x.new_zeros(len(x), layer.out_features), learn=False)
    weights = routing.weights()
    k = layer.rule.k
    assert k is not None
    kept, places = weights.topk(k, dim=-1)  # [n, k]
    rows = layer.mu_weight[places]  # [n, k, i]
    y = torch.einsum("nki,ni->nk", rows, x) + layer.mu_bias[places]
    if layer.residual:
        y = y + x.gather(-1, places)
    return torch.zeros_like(weights).scatter_(-1, places, y * kept)


def run(widths: Sequence[int], batch: int, repeats: int, threads: int, progress: Progress) -> Result:
    """The answer for each width and density."""
    torch.set_num_threads(threads)
    progress.begin("layers", len(widths) * len(DENSITIES))
    rows, measured = [], []
    series: dict[str, dict[str, float]] = {}
    for hidden in widths:
        for density in DENSITIES:
            progress.step(f"hidden {hidden}, {density:.0%}")
            torch.manual_seed(0)
            limited = density if experts_of(density, hidden) is not None else None
            layer = SparseProtoLinear(hidden, hidden, density=limited)
            x = torch.randn(batch, hidden)
            with torch.no_grad():
                whole = _seconds(partial(layer, x), repeats)
                plain = _seconds(partial(nn.functional.linear, x, layer.mu_weight, layer.mu_bias), repeats)
                alone = whole if limited is None else _seconds(partial(skipping, layer, x), repeats)
            entry = {"hidden": hidden, "density": density, "layer": whole, "skipping": alone, "dense_linear": plain}
            measured.append(entry)
            series.setdefault(f"hidden {hidden}", {})[f"{density:.0%}"] = alone / whole
            rows.append(
                [
                    f"hidden {hidden}, {density:.0%} open",
                    f"{whole * 1e6:.0f}",
                    f"{alone * 1e6:.0f}",
                    f"{alone / whole:.2f}",
                    f"{plain / whole:.2f}",
                ]
            )
    return Result(
        question="skipping",
        title=f"One layer, one token of each of {batch} sequences, {threads} CPU threads",
        columns=["what", "layer (us)", "closed rows skipped (us)", "of the layer", "a dense linear layer, of it"],
        rows=rows,
        plot_label="time with closed rows skipped, of the layer as it is",
        places="open experts",
        series=series,
        data={"measured": measured, "batch": batch, "threads": threads},
        notes=["Skipping pays where its column is below 1. The router's product is computed whole in both."],
    )


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call."""
    call()
    seconds = []
    for _ in range(repeats):
        calls, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < _SECONDS:
            call()
            calls += 1
        seconds.append(spent / calls)
    return statistics.median(seconds)
