"""`python -m experiments.benchmarks.usage COMMAND...`: the CPU seconds and the memory of a command and of all processes
that it starts, Ray's included. For Linux."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

_EVERY_S = 0.5


@dataclass
class Usage:
    """What the processes of a command have used so far. One that lives for less than half a second may be missed."""

    cpu_seconds: dict[psutil.Process, float]
    peak_bytes: int = 0  # of all together; a page that several share counts once
    _ended: set[psutil.Process] = field(default_factory=set)

    def sample(self) -> None:
        """Adds what there is now. A process still counts when its parent has ended."""
        children: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess):
                children.setdefault(process.ppid(), []).append(process)
        waiting, together = [each for each in self.cpu_seconds if each not in self._ended], 0
        seen = set(waiting)
        while waiting:
            process = waiting.pop()
            try:
                times = process.cpu_times()
                self.cpu_seconds[process] = times.user + times.system
                together += process.memory_full_info().pss
            except psutil.Error:
                self._ended.add(process)
            new = [each for each in children.get(process.pid, ()) if each not in seen]
            seen.update(new)
            waiting += new
        self.peak_bytes = max(self.peak_bytes, together)

    def as_json(self) -> dict[str, float]:
        """CPU seconds, peak MB, and how many processes there were."""
        cpu = sum(self.cpu_seconds.values())
        return {"cpu_seconds": cpu, "peak_mb": self.peak_bytes / 1e6, "processes": len(self.cpu_seconds)}


def measure(command: list[str]) -> tuple[int, dict[str, float]]:
    """The exit code of the command, and what it used; the wall time too, as `seconds`."""
    began = time.perf_counter()
    with subprocess.Popen(command) as process:
        usage = Usage({psutil.Process(process.pid): 0.0})
        while process.poll() is None:
            usage.sample()
            time.sleep(_EVERY_S)
    return process.returncode, {"seconds": time.perf_counter() - began, **usage.as_json()}


if __name__ == "__main__":
    code, used = measure(sys.argv[1:])
    print(json.dumps(used))
    sys.exit(code)
