"""`python -m tests.drills.toys OUTPUT TRIALS`: a sweep of trials that take no time, tracked in MLflow."""

import sys
from pathlib import Path

from pipeline.layout import Output
from pipeline.running.sweep import run_sweep
from pipeline.settings.config import SweepConfig, TrainingConfig, WorkersConfig
from pipeline.settings.trials import trials_of
from pipeline.tracking.tracker import Tracker
from tests.pipeline.toy_training import toy_data, toy_experiment, toy_train


def main(output: Path, trials: int) -> int:
    """The sweep's exit code."""
    where = Output(output)
    experiment = toy_experiment(
        training=TrainingConfig(steps=2, warmup_steps=1, batch_tokens=64),
        workers=WorkersConfig(cpus=0.5, timeout_s=30),
        sweep=SweepConfig(arms=("none",), seeds=tuple(range(trials))),
    )
    return run_sweep(
        experiment,
        trials_of(experiment),
        where,
        toy_data(output / "data"),
        train_fn=toy_train,
        resume=False,
        tracker=Tracker(where.tracking_uri, "toys", where.artifacts),
        command="tiny-onn ablate toys.yaml",
    ).exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
