"""`python -m tests.pipeline.run_toy OUTPUT DESCRIPTION LOG [STEPS]`: a toy sweep in a process of its own."""

import sys
from pathlib import Path

from rich.console import Console

from pipeline.layout import Output
from pipeline.running.run_options import RunOptions
from pipeline.running.sweep import run_sweep
from pipeline.settings.config import TrainingConfig
from pipeline.settings.trials import trials_of
from tests.pipeline.toy_training import RecordingTracker, toy_data, toy_experiment, toy_train


def main(output: Path, description: str, log: Path, steps: int = 1000) -> int:
    """The sweep's exit code."""
    experiment = toy_experiment(
        arms=("task_only",),
        description=description,
        training=TrainingConfig(steps=steps, warmup_steps=1, batch_tokens=64),
    )
    outcome = run_sweep(
        experiment,
        trials_of(experiment),
        toy_data(output / "data"),
        RunOptions(Output(output), resume=False, command="tiny-onn ablate toy.yaml", console=Console()),
        train_fn=toy_train,
        tracker=RecordingTracker(log),
    )
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:])))
