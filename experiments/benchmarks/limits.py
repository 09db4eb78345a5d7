"""What a driver and a rank take as trials and data grow: the constants by which larger sizes are reckoned."""

import multiprocessing
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.benchmarks.measure import peak_since_reset, reset_peak
from experiments.benchmarks.report import Progress, Result
from experiments.benchmarks.tracking_load import metrics
from pipeline.data.plan import plan_epoch
from pipeline.data.published import publish
from pipeline.data.shards import prepare
from pipeline.layout import Output
from pipeline.records.attempts import Attempt, write_attempt
from pipeline.records.spool import Spool
from pipeline.running.progress import TrialProgress
from pipeline.running.sweep import poll_states
from pipeline.settings.config import DataConfig, Experiment, SweepConfig
from pipeline.settings.trials import trials_of
from pipeline.storage.opening import open_storage
from pipeline.storage.storage import Storage

_LOOKS = 5
_LONGEST, _BUDGET = 512, 2048  # tokens of a row, and of a rank's batch


def look_seconds(trials: int) -> float:
    """CPU seconds in which the driver looks once at so many running trials that have nothing new."""
    experiment = Experiment(name="limits", sweep=SweepConfig(arms=("task_only",), seeds=tuple(range(trials))))
    with tempfile.TemporaryDirectory(prefix="tiny-onn-bench-") as root:
        progress = [TrialProgress(t, Output(Path(root)).trial("limits", t.key)) for t in trials_of(experiment)]
        for each in progress:
            write_attempt(each.folder, Attempt(1, "now"))
            Spool(each.folder.spool).write(1, metrics(1))
        poll_states(progress, "now")
        began = time.process_time()
        for _ in range(_LOOKS):
            poll_states(progress, "now")
        return (time.process_time() - began) / _LOOKS


def plan_cost(rows: int, ranks: int, rows_per_group: int) -> tuple[float, float]:
    """(CPU seconds, bytes a row at the peak) in which a rank plans an epoch; in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_plan, (rows, ranks, rows_per_group))


def _plan(rows: int, ranks: int, rows_per_group: int) -> tuple[float, float]:
    lengths = np.random.default_rng(0).integers(_LONGEST // 8, _LONGEST, rows, endpoint=True).astype(np.int32)
    groups = np.split(lengths, range(rows_per_group, rows, rows_per_group))
    before, began = reset_peak(), time.process_time()
    plan_epoch(groups, 0, 0, ranks, _BUDGET)
    return time.process_time() - began, (peak_since_reset() - before) / rows


def sizes(rows_per_group: int) -> dict[str, float]:
    """Of a data set in a storage: tokens a row, bytes a token, and bytes of a row group in a shard's footer and of a
    row in the file of lengths."""
    with tempfile.TemporaryDirectory(prefix="tiny-onn-bench-") as root:
        data = prepare(DataConfig(rows_per_group=rows_per_group, colour_permutations=4), Path(root) / "data")
        there = publish(data, open_storage(root) / "storage").folder
        assert isinstance(data.folder, Path)
        assert isinstance(there, Storage)
        files = there.files()
        shards, count = data.shards("train"), data.manifest.counts["train"]
        # A Parquet file ends with its footer, the footer's length and four letters.
        ends = [(data.folder / shard.file).read_bytes()[-8:-4] for shard in shards]
        return {
            "tokens_a_row": count.tokens / count.rows,
            "bytes_a_token": sum(files[shard.file].size for shard in shards) / count.tokens,
            "footer_bytes_a_group": sum(struct.unpack("<I", end)[0] for end in ends)
            / sum(s.row_groups for s in shards),
            "lengths_bytes_a_row": files["train-lengths.parquet"].size / count.rows,
        }


def run(trials: int, rows: int, ranks: Sequence[int], groups: Sequence[int], progress: Progress) -> Result:
    """All of it."""
    progress.begin("limits", 1 + len(ranks) + len(groups))
    progress.step(f"{trials} trials")
    seen = look_seconds(trials)
    table = [[f"the driver looks at {trials} trials", f"{1e3 * seen:.0f}", "ms CPU"]]
    plans = {}
    for count in ranks:
        progress.step(f"{rows} rows, {count} ranks")
        seconds, size = plans[count] = plan_cost(rows, count, groups[0])
        table.append([f"a rank of {count} plans an epoch", f"{1e6 * seconds / rows:.1f}", "us CPU a row"])
        table.append(["", f"{size:.0f}", "bytes a row"])
    stored = {}
    for count in groups:
        progress.step(f"{count} rows a group")
        measured = stored[count] = sizes(count)
        table.append([f"data set, {count} rows a group", f"{measured['bytes_a_token']:.2f}", "bytes a token"])
        table.append(["", f"{measured['footer_bytes_a_group']:.0f}", "bytes of footer a row group"])
        table.append(["", f"{measured['lengths_bytes_a_row']:.2f}", "bytes of lengths a row"])
        table.append(["", f"{measured['tokens_a_row']:.0f}", "tokens a row"])
    return Result(
        question="limits",
        title="What grows with trials, rows and ranks",
        columns=["what", "value", "unit"],
        rows=table,
        plot_label="bytes a row of a rank's plan",
        places="ranks",
        series={f"{rows} rows": {str(count): size for count, (_, size) in plans.items()}},
        data={
            "look": {"trials": trials, "seconds": seen},
            "plans": {count: {"rows": rows, "seconds": s, "bytes_a_row": b} for count, (s, b) in plans.items()},
            "sizes": stored,
        },
    )
