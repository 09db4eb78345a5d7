"""A train function that does what the sweep expects of the real one in milliseconds, and misbehaves on request."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.data.manifest import SCHEMA_VERSION, Manifest, Prepared
from pipeline.files import write_whole
from pipeline.layout import TrialFolder
from pipeline.measures import ACTIVATION_RATE, TASK_LOSS, by_layer
from pipeline.records.pruned import write_pruned
from pipeline.records.spool import Spool
from pipeline.running.trial_spec import TrialSpec
from pipeline.settings.config import DataConfig, Experiment, ModelConfig, SweepConfig, TrainingConfig, WorkersConfig
from pipeline.settings.trials import Trial
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.mlflow_run import Description


def toy_train(spec: TrialSpec) -> None:
    """Steps through a trial. The experiment's description, as JSON, may say:

    {"sleep_s": seconds a step, "raise": [arm, rank], "kill_once": arm, "losses": {arm: loss}}

    A trial's loss is 1 / step, or its arm's of `losses` plus its learning rate; it ends early when it is told to.
    """
    import ray.train
    import torch
    import torch.distributed as dist

    experiment, folder = spec.experiment, spec.folder
    wish = json.loads(experiment.description or "{}")
    rank, world, arm = dist.get_rank(), dist.get_world_size(), experiment.training.arm
    seen = torch.tensor([float(rank + 1)])
    dist.all_reduce(seen)
    (folder.root / f"entered-{spec.attempt}-{rank}").write_text(str(time.time()))
    if wish.get("raise") == [arm, rank]:
        raise ValueError(f"the loss of {arm} is not finite")
    marker = folder.root / "killed-once"
    if wish.get("kill_once") == arm and rank == 0 and not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    spool = Spool(folder.spool) if rank == 0 else None
    for step in range(1, experiment.training.steps + 1):
        time.sleep(wish.get("sleep_s", 0.0))
        loss = wish["losses"][arm] + experiment.training.learning_rate if "losses" in wish else 1.0 / step
        if spool is not None:
            rates = {by_layer(ACTIVATION_RATE, layer): 0.5 / (layer + 1) for layer in range(experiment.model.layers)}
            spool.write(step, {TASK_LOSS: loss, **rates})
        ray.train.report({"step": step, "loss": loss})
        if folder.prune.exists():
            write_pruned(folder, step)
            return
    if rank == 0:
        result = {"metrics": {"sum_of_ranks": float(seen), "world": world}, "steps": experiment.training.steps}
        write_whole(folder.result, json.dumps({**result, "seconds": 0.1, "attempt": spec.attempt}))


def toy_experiment(
    name: str = "toy", arms: tuple[str, ...] = ("per_token", "aggregated", "task_only"), **changes: Any
) -> Experiment:
    """A small sweep of half-core workers."""
    values: dict[str, Any] = {
        "data": DataConfig(max_tokens=16),
        "model": ModelConfig(hidden=8, layers=3, heads=2),
        "training": TrainingConfig(steps=3, warmup_steps=1, batch_tokens=64),
        "workers": WorkersConfig(cpus=0.5, timeout_s=30),
        "sweep": SweepConfig(arms=arms, seeds=(0,)),
        **changes,
    }
    return Experiment(name=name, **values)


def toy_data(folder: Path) -> Prepared:
    """A prepared data set that holds nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    nothing = "0" * 64
    return Prepared(
        folder,
        Manifest(
            schema_version=SCHEMA_VERSION,
            dataset="toy",
            config=DataConfig(max_tokens=16),
            source_hash=nothing,
            data_hash=nothing,
            counts={},
            refused=(),
            leakage=(),
            shards=(),
        ),
    )


class RecordingTracker:
    """Notes what it is told, and from which thread."""

    problem = None
    untouched = False

    def __init__(self, log: Path | None = None, at_once: int = 1) -> None:
        self.at_once = at_once
        self.calls: list[tuple[str, ...]] = []
        self.threads: set[str] = set()
        self._log = log

    def _note(self, *words: str) -> None:
        self.calls.append(words)
        self.threads.add(threading.current_thread().name)
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(" ".join(words) + "\n")

    def start_trial(
        self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str], ending: str | None = None
    ) -> Delivery:
        self._note("start", trial.key, sweep, extra["data_name"])
        run = Delivery(folder.delivery, Description(trial.key, {}, {}), folder)
        if ending is not None:
            self.end_trial(run, ending)
        return run

    def ship(self, run: Delivery) -> int:
        self._note("ship", run.path.parent.name)
        return 0

    def end_trial(self, run: Delivery, status: str) -> None:
        self._note("end", run.path.parent.name, status)
        run.ending, run.over = status, True

    def start_summary(self, sweep_folder: Path, experiment: Experiment) -> str:
        self._note("start_summary", experiment.name)
        return "summary"

    def end_summary(self, status: str, artifacts: list[Path]) -> None:
        self._note("end_summary", status, *(path.name for path in artifacts))

    def close(self, status: str) -> dict[Path, str]:
        self._note("close", status)
        return {}

    def ended(self) -> dict[str, str]:
        """The last status of each trial."""
        return {call[1]: call[2] for call in self.calls if call[0] == "end"}
