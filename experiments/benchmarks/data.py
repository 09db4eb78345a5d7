"""Can the loader keep up with training, and does a reading process stay small as the data set grows?

Throughput is measured where training reads: Parquet shard to batch, a whole epoch, its plan included, in turn with
training steps on batches of the same data set. Larger data sets are written by the pipeline's writer in a temporary
folder; each is read in a process of its own.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from experiments.benchmarks.data_reader import BATCHES, STAGES, Stage, reading
from experiments.benchmarks.data_sets import write_repeated
from experiments.benchmarks.measure import ratio, seconds_in_turn
from experiments.benchmarks.report import Progress, Result
from pipeline.data.arc import load_corpus
from pipeline.data.loader import Loader
from pipeline.data.manifest import Prepared
from pipeline.data.shards import open_prepared
from pipeline.settings.config import Experiment
from pipeline.training.build import build_dynamics, build_model, compiling
from pipeline.training.step import train_step

TRAINED_BATCHES = 8  # of a repeat, spread over the epoch


def throughput(experiment: Experiment, prepared: Prepared, repeats: int, progress: Progress) -> dict[str, Any]:
    """Valid (unpadded) tokens a second that a loader gives and that training takes, and how many it could feed."""
    loader = Loader(prepared, "train", experiment.training.batch_tokens, seed=0)
    epochs = iter(range(1, repeats + 3))

    def load() -> int:
        return sum(int(batch.valid.sum()) for batch in loader.batches(next(epochs)))

    every = list(loader.batches(0))
    batches = every[:: max(1, len(every) // TRAINED_BATCHES)][:TRAINED_BATCHES]
    model = build_model(experiment)
    dynamics = build_dynamics(model, experiment.training)

    def train() -> None:
        for batch in batches:
            train_step(model, batch, dynamics)

    progress.begin("tokens a second", 2 * (repeats + 2))
    steps: dict[str, Callable[[], object]] = {"loader": load, "training": train}
    seconds = seconds_in_turn(steps, repeats, torch.device("cpu"), progress.step)
    tokens = {
        "loader": prepared.manifest.counts["train"].tokens,  # an epoch has every row once
        "training": sum(int(batch.valid.sum()) for batch in batches),
    }
    rates = {
        name: {"tokens": tokens[name], "all_seconds": each, "tokens_per_second": tokens[name] / statistics.median(each)}
        for name, each in seconds.items()
    }
    feeds = ratio(seconds, "training", "loader") * tokens["loader"] / tokens["training"]
    return {**rates, "trainings_one_loader_feeds": feeds, "engine": dynamics.engine}


def grow(
    experiment: Experiment, factors: Sequence[int], repeats: int, threads: int, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Throughput at the data set as it is, and what reading takes at each factor, smallest first."""
    corpus = load_corpus(experiment.data)
    rates: dict[str, Any] = {}
    sizes = []
    with tempfile.TemporaryDirectory(prefix="tiny-onn-bench-") as root:
        for factor in sorted({1, *factors}):
            folder = Path(root) / f"x{factor}"
            progress.begin(f"writing {factor}x", 100)
            write_repeated(experiment.data, corpus, factor, folder, _percent(progress))
            if factor == 1:
                rates = throughput(experiment, open_prepared(folder, "arc"), repeats, progress)
            if factor in factors:
                progress.begin(f"reading {factor}x", 1)
                measured = reading(folder, experiment.training.batch_tokens, threads)
                sizes.append(_size(factor, folder, open_prepared(folder, "arc", hashes=False), measured))
    return rates, sizes


def run(experiment: Experiment, factors: Sequence[int], repeats: int, threads: int, progress: Progress) -> Result:
    """The benchmark; `experiment` says what data, in what batches, and what is trained."""
    torch.set_num_threads(threads)
    pa.set_cpu_count(threads)
    rates, sizes = grow(experiment, factors, repeats, threads, progress)
    feeds = rates["trainings_one_loader_feeds"]
    smallest, largest = sizes[0], sizes[-1]
    more_rows = largest["rows"] - smallest["rows"]
    growth = (largest["peak_bytes"] - smallest["peak_bytes"]) / more_rows if more_rows else None
    model, training = experiment.model, experiment.training
    trained = f"{training.arm}, hidden {model.hidden}, {model.layers} layers, {compiling(training)}"
    notes = [
        f"From Parquet to batch: {rates['loader']['tokens_per_second']:,.0f} tokens a second, a whole epoch with its "
        f"plan; training ({trained}, {rates['engine']}, at most {training.batch_tokens} tokens a step): "
        f"{rates['training']['tokens_per_second']:,.0f}. One loader could feed {feeds:.1f} such trainings. Padding is "
        "not counted; files come from the page cache.",
        "Peaks are of a process of its own, above what it held before it opened the data set. read: the first "
        f"{BATCHES} batches, or an epoch where it has fewer; next epoch: its plan and first batch.",
    ]
    if growth is not None:
        notes.append(f"From {smallest['factor']}x to {largest['factor']}x the peak grows by {growth:.0f} bytes a row.")
    return Result(
        question="data",
        title=f"Reading a prepared data set ({experiment.data.dataset}), {threads} threads",
        columns=["data set", "rows", "MB on disk", "what", "seconds", "peak MB"],
        rows=[row for size in sizes for row in _rows(size)],
        plot_label="peak MB above the start",
        places="size of the data set",
        series={
            stage.replace("_", " "): {f"{size['factor']}x": size["stages"][stage]["peak_bytes"] / 1e6 for size in sizes}
            for stage in STAGES
        },
        data={
            "hidden": model.hidden,
            "layers": model.layers,
            "threads": threads,
            "compile": compiling(training),
            **rates,
            "sizes": sizes,
            "bytes_a_row": growth,
        },
        notes=notes,
    )


def _percent(progress: Progress) -> Callable[[int, int], None]:
    done = 0

    def report(rows: int, total: int) -> None:
        nonlocal done
        while done < 100 * rows // total:
            done += 1
            progress.step(f"{rows} of {total} rows")

    return report


def _size(factor: int, folder: Path, prepared: Prepared, stages: dict[str, Stage]) -> dict[str, Any]:
    counts = prepared.manifest.counts["train"]
    return {
        "factor": factor,
        "rows": counts.rows,
        "tokens": counts.tokens,
        "disk_bytes": sum((folder / shard.file).stat().st_size for shard in prepared.shards("train")),
        "open_seconds": stages["open"].seconds,
        "peak_bytes": max(stage.peak_bytes for stage in stages.values()),
        "stages": {name: asdict(stage) for name, stage in stages.items()},
    }


def _rows(size: dict[str, Any]) -> list[list[str]]:
    first = [f"{size['factor']}x", str(size["rows"]), f"{size['disk_bytes'] / 1e6:.1f}"]
    return [
        [
            *(["", "", ""] if number else first),
            name.replace("_", " "),
            f"{stage['seconds']:.2f}",
            f"{stage['peak_bytes'] / 1e6:.1f}",
        ]
        for number, (name, stage) in enumerate(size["stages"].items())
    ]
