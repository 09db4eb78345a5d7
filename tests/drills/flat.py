"""What must not grow: a worker's memory over thousands of steps, descriptors and threads over many trials."""

import json
import os
import statistics
import time

from pipeline.layout import Output
from tests.drills.faults import EVERY, Fault
from tests.drills.scene import NAME, Scene, processes_under

_STEPS, _EVERY, _FIRST = 5000, 50, 1000
_MOST_A_STEP = {"bytes": 500.0, "used": 50.0, "blocks": 0.2}
_TRIALS, _AT_ONCE = 50, 4
_MOST_MORE, _MOST_MORE_OF_GCS = 4, 10


def memory_of_a_worker(scene: Scene) -> str:
    """5,000 steps of a worker, with logs, evaluations and checkpoints; what it holds every 50 steps, garbage collected.

    From step 1,000 on, as Theil and Sen estimate it: Python's objects must not grow by two a log (every 10 steps), nor
    what malloc has given out by 50 bytes a step; the smallest tensor of a step's tokens (some 230, 4 bytes each) would
    be 900. All that is held, with what malloc keeps for later and Ray has of its own, must not grow by 500.
    """
    every = ("log_every=10", "evaluate_every=500", "checkpoint_every=500")
    more = (f"steps={_STEPS}", "seed=0", "decode_tasks=0", "batch_tokens=256", *every)
    options = [word for each in (*(f"training.{m}" for m in more), "workers.count=1") for word in ("--set", each)]
    scene.run("train", *options, faults=[Fault("measure", step=EVERY, times=EVERY, value=_EVERY)]).expect(0)
    lines = (scene.output / "faults" / "memory-0.jsonl").read_text().splitlines()
    seen = [each for each in map(json.loads, lines) if each["step"] >= _FIRST]
    assert len(seen) == (_STEPS - _FIRST) // _EVERY + 1
    slopes = {what: median_slope([(each["step"], each[what]) for each in seen]) for what in _MOST_A_STEP}
    for what, most in _MOST_A_STEP.items():
        assert slopes[what] < most, f"{slopes[what]:+.2f} {what} a step: {[each[what] for each in seen]}"
    told = ", ".join(f"{slope:+.2f} {what}" for what, slope in slopes.items())
    return f"a step: {told}; at {seen[-1]['bytes'] / 1e6:.0f} MB, {seen[-1]['used'] / 1e6:.0f} of them in use by malloc"


def median_slope(points: list[tuple[float, float]]) -> float:
    """Theil and Sen's estimate: the median of the slopes of all pairs."""
    pairs = ((a, b) for i, a in enumerate(points) for b in points[i + 1 :])
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)


def descriptors_and_threads(scene: Scene) -> str:
    """50 trials of two steps: open files and threads of the sweep's process, Tune's and Ray's, and how many they are.

    Counted as each trial ends. The median of the last ten counts may lie 4 above that of the first ten: what one trial
    in ten would leave behind. Ray's head keeps a socket, already closed, of every seventh trial or so: of its files,
    one trial in four may leave one.
    """
    more = ("steps=2", "warmup_steps=1", "log_every=1", "evaluate_every=2", "checkpoint_every=2", "decode_tasks=0")
    sweep = (f"sweep.seeds={list(range(_TRIALS))}", f"sweep.max_concurrent={_AT_ONCE}", "workers.count=1")
    options = [word for each in (*(f"training.{m}" for m in more), *sweep) for word in ("--set", each)]
    process = scene.start_with("ablate", *options)
    trials = Output(scene.output).sweep(NAME) / "trials"
    seen: dict[str, list[int]] = {}
    done = 0
    while process.poll() is None:
        now = len(list(trials.glob("*/result.json")))
        if now > done:
            done = now
            for what, count in _counts(process.pid).items():
                seen.setdefault(what, []).append(count)
        time.sleep(0.1)
    scene.wait(process).expect(0)
    ends = {what: (statistics.median(counts[:10]), statistics.median(counts[-10:])) for what, counts in seen.items()}
    told = "; ".join(f"{what} {early:g}, {late:g}" for what, (early, late) in ends.items())
    grown = {what: seen[what] for what, (early, late) in ends.items() if late > early + _most_more(what)}
    assert not grown, f"{told}: {grown}"
    return f"medians of the first and the last ten of {len(seen['processes'])} counts: {told}"


def _most_more(what: str) -> int:
    return _MOST_MORE_OF_GCS if what == "GCS, files" else _MOST_MORE


def _counts(pid: int) -> dict[str, int]:
    """Of the sweep's process `pid` and those that it has started; of several with one task, the most."""
    below = processes_under(pid)
    counts = {"processes": len(below)}
    for name, mark in (
        ("the sweep", ""),
        ("Tune's", "ImplicitFunc"),
        ("GCS", "/gcs_server"),
        ("raylet", "/raylet/raylet"),
    ):
        pids = [pid] if not mark else [each for each, line in below.items() if mark in " ".join(line.split()[:2])]
        for what, folder in (("files", "fd"), ("threads", "task")):
            counts[f"{name}, {what}"] = max((_entries(f"/proc/{each}/{folder}") for each in pids), default=0)
    return counts


def _entries(folder: str) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:  # the process has ended
        return 0


DRILLS = (memory_of_a_worker, descriptors_and_threads)
