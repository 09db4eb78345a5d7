"""What must not grow: a worker's memory over thousands of steps, descriptors and threads over many trials."""

import json
import os
import statistics
import subprocess

from tests.drills.faults import EVERY, Fault
from tests.drills.scene import Scene, processes_under

_STEPS, _EVERY, _FIRST = 5000, 50, 1000
_MOST_BYTES_A_STEP = 500.0
_TRIALS = 50


def memory_of_a_worker(scene: Scene) -> str:
    """5,000 steps of a worker, with logs, evaluations and checkpoints; its memory every 50 steps.

    The slope from step 1,000 on must lie under 500 bytes a step, as Theil and Sen estimate it: to keep but the smallest
    tensor of a step's tokens (some 230 of them, 4 bytes each) would be twice as much.
    """
    every = ("log_every=10", "evaluate_every=500", "checkpoint_every=500")
    more = (f"steps={_STEPS}", "seed=0", "generate_tasks=0", "batch_tokens=256", *every)
    options = [word for each in (*(f"training.{m}" for m in more), "workers.count=1") for word in ("--set", each)]
    scene.run("train", *options, faults=[Fault("measure", step=EVERY, times=EVERY, value=_EVERY)]).expect(0)
    lines = (scene.output / "faults" / "memory-0.jsonl").read_text().splitlines()
    seen = [(each["step"], each["bytes"]) for each in map(json.loads, lines) if each["step"] >= _FIRST]
    assert len(seen) == (_STEPS - _FIRST) // _EVERY + 1
    slope = median_slope(seen)
    assert slope < _MOST_BYTES_A_STEP, f"{slope:.0f} bytes a step: {seen}"
    return f"{slope:+.0f} bytes a step at {seen[-1][1] / 1e6:.0f} MB"


def median_slope(points: list[tuple[float, float]]) -> float:
    """Theil and Sen's estimate: the median of the slopes of all pairs."""
    pairs = ((a, b) for i, a in enumerate(points) for b in points[i + 1 :])
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)


def descriptors_and_threads(scene: Scene) -> str:
    """50 trials of one step each: open files and threads of the sweep's process and of those in which Tune runs trials.

    Counted as each trial ends. The most of the last ten may lie two above the most of trials 11 to 20.
    """
    process = scene.start_toys(_TRIALS)
    seen: dict[str, dict[int, tuple[int, int]]] = {"the sweep": {}, "Tune's": {}}
    while process.poll() is None:
        done = len(list((scene.output / "sweeps" / "toy" / "trials").glob("*/result.json")))
        seen["the sweep"][done] = _count(process.pid)
        tune = [_count(pid) for pid, line in processes_under(process.pid).items() if "ImplicitFunc" in line]
        seen["Tune's"][done] = max(tune, default=(0, 0))
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
    scene.wait(process).expect(0)
    return "; ".join(_flat(name, counts) for name, counts in seen.items())


def _flat(name: str, counts: dict[int, tuple[int, int]]) -> str:
    told = []
    for what, place in (("open files", 0), ("threads", 1)):
        early = max(count[place] for done, count in counts.items() if 10 <= done < 20)
        late = max(count[place] for done, count in counts.items() if _TRIALS - 10 <= done < _TRIALS)
        assert late <= early + 2, f"{name}: {what} {early} at first, {late} at last: {counts}"
        told.append(f"{early} {what} at first, {late} at last")
    return f"{name}: {', '.join(told)}"


def _count(pid: int) -> tuple[int, int]:
    try:
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0, 0


DRILLS = (memory_of_a_worker, descriptors_and_threads)
