"""What reading a prepared data set takes: time and memory, stage by stage, in a process of its own."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch

from experiments.benchmarks.measure import peak_since_reset, reset_peak
from pipeline.data.loader import Loader
from pipeline.data.rows import read_group
from pipeline.data.shards import open_prepared
from pipeline.data.tokens import FORMAT

STAGES = ("open_with_hashes", "open", "plan", "read", "next_epoch")
BATCHES = 300  # that are read, or an epoch where it has fewer


@dataclass
class Stage:
    """Seconds, and the peak of memory in bytes above what the process held before it opened the data set."""

    seconds: float
    peak_bytes: int


def reading(folder: Path, batch_tokens: int, threads: int) -> dict[str, Stage]:
    """What reading takes, in a fresh process.

    open_with_hashes: `open_prepared` with every file read whole, once a run. open: without, as the other workers do.
    plan: the Loader, which reads all lengths and plans an epoch. read: the first batches. next_epoch: the first batch
    of the next, which is planned while this one's plan is held.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_read, (folder, batch_tokens, threads))


def _read(folder: Path, batch_tokens: int, threads: int) -> dict[str, Stage]:
    torch.set_num_threads(threads)
    pa.set_cpu_count(threads)
    read_group(min(folder.glob("train-*.parquet")), 0, FORMAT)  # what libraries take at their first use

    stages: dict[str, Stage] = {}
    before = reset_peak()
    with _stage("open_with_hashes", stages, before):
        open_prepared(folder, "arc")
    with _stage("open", stages, before):
        prepared = open_prepared(folder, "arc", hashes=False)
    with _stage("plan", stages, before):
        loader = Loader(prepared, "train", batch_tokens, seed=0)
    with _stage("read", stages, before):
        for _ in islice(loader.batches(0), BATCHES):
            pass
    with _stage("next_epoch", stages, before):
        next(iter(loader.batches(1)))
    return stages


@contextmanager
def _stage(name: str, stages: dict[str, Stage], before: int) -> Iterator[None]:
    reset_peak()
    started = time.perf_counter()
    yield
    stages[name] = Stage(time.perf_counter() - started, peak_since_reset() - before)
