"""Does the courier keep up with a sweep of many trials, and what would it cost trials to log by themselves?

For each store: how long it takes to open the trials' runs; how many points a second the courier delivers when all have
been logged before; how far behind it is when the trials log at their pace; how long it takes to end the runs; and
direct logging, a call for each step.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.benchmarks.report import Progress, Result
from experiments.benchmarks.tracking_load import POINTS, Load, log_directly, write_spools, writing
from experiments.benchmarks.tracking_stores import SERVER_WORKERS, NotHere, store
from pipeline.layout import Output, TrialFolder
from pipeline.records.delivery import read_delivery
from pipeline.records.spool import read_spool
from pipeline.records.state import State
from pipeline.settings.config import Experiment, SweepConfig
from pipeline.settings.trials import Trial, trials_of
from pipeline.tracking.courier import Courier
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.store import open_experiment, open_store
from pipeline.tracking.tracker import Tracker

_EXTRA = {"data_name": "none", "data_hash": "0" * 64, "data_counts": "{}", "mlflow.source.git.commit": "0" * 40}
_POLL_S = 0.25


class TimedTracker(Tracker):
    """Notes how old each line of metrics is when the store has it."""

    def __init__(self, uri: str, artifacts: Path) -> None:
        super().__init__(uri, "bench", artifacts)
        self.lags: list[float] = []
        self.watching = False

    def ship(self, run: Delivery) -> int:
        """As the tracker does; of the lines that were sent, it notes the age."""
        before = run.state.offset
        sent = super().ship(run)
        if self.watching and sent and run.folder is not None:
            now, after = time.time(), run.state.offset
            lines = [line for line in read_spool(run.folder.spool, before)[0] if line.end <= after]
            self.lags.extend([now - line.time_ms / 1000 for line in lines])
        return sent


def measure(name: str, load: Load, progress: Progress) -> dict[str, Any]:
    """All that is asked of one store."""
    numbers: dict[str, Any] = {}
    for what, how in (("courier", _courier), ("direct", _direct)):
        progress.step(f"{name}: {what}")
        with _root() as root, store(name, root) as uri:
            numbers |= how(uri, root, load)
    return numbers


def run(stores: Sequence[str], load: Load, progress: Progress) -> Result:
    """The benchmark."""
    progress.begin("stores", 2 * len(stores))
    measured: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for name in stores:
        try:
            measured[name] = measure(name, load, progress)
        except NotHere as why:
            skipped[name] = str(why)
    offered = load.trials * POINTS / load.every_s
    notes = [
        f"{load.trials} trials, {POINTS} points a logged step, {load.steps} steps every {load.every_s:g} s: "
        f"{offered:,.0f} points a second are offered. server and postgres are MLflow servers on loopback with "
        f"{SERVER_WORKERS} processes, SQLite or PostgreSQL behind them. Everything shares this machine's cores.",
        "open: until every trial has its run; close: until all have been ended. points/s and CPU %: the courier's, of "
        "a core in the driver, with all points logged before. p50 s and p95 s: age of a logged step when the store has "
        "it, with trials that log at their pace.",
        f"direct: a call for each step of each trial, from {load.processes} processes; what they take of a core, "
        "together, and what a call takes.",
        *(f"{name} was left out: {why}." for name, why in skipped.items()),
    ]
    return Result(
        question="tracking",
        title=f"Tracking {load.trials} trials at once",
        columns=[
            "what",
            *("open s", "points/s", "CPU %", "p50 s", "p95 s", "close s"),
            *("direct points/s", "direct CPU %", "p50 ms", "p95 ms"),
        ],
        rows=[_row(name, each) for name, each in measured.items()],
        plot_label="points a second",
        places="store",
        series={
            how: {name: each[key] for name, each in measured.items()}
            for how, key in (("courier", "courier_points_per_second"), ("direct", "direct_points_per_second"))
        },
        data={"load": vars(load), "points_a_step": POINTS, "stores": measured, "skipped": skipped},
        notes=notes,
    )


def _courier(uri: str, root: Path, load: Load) -> dict[str, Any]:
    experiment, pairs = _sweep(root, load)
    folders = [folder.root for _, folder in pairs]
    tracker = TimedTracker(uri, root / "artifacts")
    courier = Courier(tracker, experiment.name, Output(root).sweep(experiment.name), experiment, pairs, _EXTRA)
    began = time.monotonic()
    courier.see({trial.key: State.RUNNING for trial, _ in pairs})
    _wait(lambda: all(_is_open(folder) for _, folder in pairs))
    opened = time.monotonic() - began

    write_spools(folders, load)
    cpu, began, before = _cpu_of_others(), time.monotonic(), tracker.sent
    _wait(lambda: tracker.sent >= load.points)
    drained = time.monotonic() - began
    numbers = {
        "open_seconds": opened,
        "courier_points_per_second": (load.points - before) / drained,
        "courier_driver_cpu": (_cpu_of_others() - cpu) / drained,
    }

    tracker.watching = True
    with writing(folders, load) as written:
        cpu, began = _cpu_of_others(), time.monotonic()
        late = max(written.get())
        lasted, behind = time.monotonic() - began, 2 * load.points - tracker.sent
        share = (_cpu_of_others() - cpu) / lasted
        _wait(lambda: tracker.sent >= 2 * load.points)
    lags = sorted(tracker.lags)
    assert len(lags) == load.trials * load.steps, len(lags)
    numbers |= {
        "lag_p50": statistics.median(lags),
        "lag_p95": lags[int(0.95 * len(lags))],
        "lag_max": lags[-1],
        "live_driver_cpu": share,
        "points_behind_at_the_end": behind,
        "writers_late_s": late,
        "caught_up_after_s": time.monotonic() - began - lasted,
    }
    assert tracker.problem is None, tracker.problem
    began = time.monotonic()
    problems = courier.finish("KILLED", None, None)
    assert not problems, problems
    return {**numbers, "close_seconds": time.monotonic() - began}


def _is_open(folder: TrialFolder) -> bool:
    """Whether the trial's run has been opened and described."""
    known = read_delivery(folder.delivery)
    return known is not None and known.run_id is not None


def _direct(uri: str, root: Path, load: Load) -> dict[str, Any]:
    client = open_store(uri)
    experiment = open_experiment(client, "bench", root / "artifacts" if uri.startswith("sqlite") else None)
    run_ids = [client.create_run(experiment).info.run_id for _ in range(load.trials)]
    calls = log_directly(uri, run_ids, load)
    seconds = sorted(calls.seconds)
    return {
        "direct_points_per_second": load.points / calls.wall_s,
        "direct_cpu": calls.cpu_s / calls.wall_s,
        "call_p50": statistics.median(seconds),
        "call_p95": seconds[int(0.95 * len(seconds))],
    }


def _sweep(root: Path, load: Load) -> tuple[Experiment, list[tuple[Trial, TrialFolder]]]:
    sweep = SweepConfig(arms=("per_token", "task_only"), seeds=tuple(range((load.trials + 1) // 2)))
    experiment = Experiment(name="bench", sweep=sweep)
    trials = trials_of(experiment)[: load.trials]
    pairs = [(trial, Output(root).trial(experiment.name, trial.key)) for trial in trials]
    for _, folder in pairs:
        folder.root.mkdir(parents=True)
    return experiment, pairs


def _row(name: str, numbers: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{numbers['open_seconds']:.1f}",
        f"{numbers['courier_points_per_second']:,.0f}",
        f"{100 * numbers['courier_driver_cpu']:.0f}",
        f"{numbers['lag_p50']:.1f}",
        f"{numbers['lag_p95']:.1f}",
        f"{numbers['close_seconds']:.1f}",
        f"{numbers['direct_points_per_second']:,.0f}",
        f"{100 * numbers['direct_cpu']:.0f}",
        f"{1e3 * numbers['call_p50']:.0f}",
        f"{1e3 * numbers['call_p95']:.0f}",
    ]


def _cpu_of_others() -> float:
    """Seconds of CPU that the other threads of this process have had: the courier's, those that have ended included."""
    return time.process_time() - time.thread_time()


def _wait(until: Callable[[], bool]) -> None:
    while not until():
        time.sleep(_POLL_S)


@contextmanager
def _root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tiny-onn-bench-") as folder:
        yield Path(folder)
