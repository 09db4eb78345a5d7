"""Does what would run at once fit the memory that there is?"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.planning.calibration_worker import Measured
from pipeline.planning.forecast import Kind

HELPERS_BYTES = 0.25e9  # the two processes that Ray adds to a trial: Tune's own, and the one for Train's barriers
GPU_CONTEXT_BYTES = 0.5e9  # what CUDA takes of a GPU for each process, of the order that is usual; not measured here


def check_memory(kinds: Sequence[Kind], at_once: int, total_bytes: float, where: str = "this machine") -> None:
    """Whether the workers that run at once fit the memory that there is, and those that share a GPU into its own.

    Raises:
        UserError: they do not; names what they take and what there is.
    """
    for kind in kinds:
        if kind.measured is None:
            continue
        if kind.example.workers.gpus:
            _check_gpu_memory(kind, kind.measured, at_once)
            continue
        one = kind.measured.peak_bytes * kind.example.workers.count + HELPERS_BYTES
        if at_once * one > total_bytes:
            enough = math.floor(total_bytes / one)
            raise UserError(
                f"memory: {at_once} trials at once need {at_once * one / 1e9:.1f} GB, but {where} has "
                f"{total_bytes / 1e9:.1f} GB. Each trial needs {kind.measured.peak_bytes / 1e9:.2f} GB for each of "
                f"{kind.example.workers.count} workers (measured, {kind.trials[0].key}), and {HELPERS_BYTES / 1e9:.2f} "
                "GB for Ray's processes. "
                + (f"Use sweep.max_concurrent <= {enough}" if enough else "Use a smaller model")
                + " or a smaller training.batch_tokens, or more training.micro_batches."
            )


def _check_gpu_memory(kind: Kind, measured: Measured, at_once: int) -> None:
    workers = kind.example.workers
    sharing = min(math.floor(1 / workers.gpus), at_once * workers.count) if workers.gpus < 1 else 1
    one = measured.peak_bytes + GPU_CONTEXT_BYTES
    if sharing * one > measured.gpu_bytes:
        raise UserError(
            f"workers.gpus={workers.gpus:g}: {sharing} workers would share a GPU of {measured.gpu_bytes / 1e9:.1f} GB, "
            f"but each needs {measured.peak_bytes / 1e9:.2f} GB (measured, {kind.trials[0].key}) and "
            f"{GPU_CONTEXT_BYTES / 1e9:.2f} GB for CUDA. Use a larger workers.gpus (1: one each), a smaller "
            "sweep.max_concurrent, or a smaller training.batch_tokens."
        )


def machine_memory() -> float:
    """Bytes that this machine, or the container that we are in, has in all."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, float(Path(path).read_text()))
        except (OSError, ValueError):  # there is no such limit, or it says "max"
            continue
    return total


def cluster_memory() -> float:
    """Bytes that the cluster to which this process is connected gives to work; infinite if it does not say."""
    import ray

    return float(ray.cluster_resources().get("memory", math.inf))
