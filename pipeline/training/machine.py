"""What a worker runs on, and how much of its memory it has used."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("torch", "ray", "mlflow", "tiny-onn")


def environment(device: torch.device) -> dict[str, str]:
    """Versions, system and device of this process, for people to read."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    on_gpu = device.type == "cuda"
    facts = {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(cores),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
    }
    return facts | ({"cuda": str(torch.version.cuda)} if on_gpu else {})


def peak_memory_mib(device: torch.device) -> float | None:
    """The most memory used so far, in MiB: by torch on a GPU, else resident of this process. None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    named = (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return []
