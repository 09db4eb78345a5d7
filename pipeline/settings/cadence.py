"""Which steps of a run are logged, evaluated and saved. Steps count from 1, and the last one is all three.

What is due at a step is written with its log entry. So a step that is evaluated or saved is logged, too, though it may
be no multiple of `log_every`; no step is rounded to another.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.settings.config import TrainingConfig


def is_logged(training: "TrainingConfig", step: int) -> bool:
    """Whether the step's metrics are written."""
    return step % training.log_every == 0 or is_evaluated(training, step) or is_saved(training, step)


def is_evaluated(training: "TrainingConfig", step: int) -> bool:
    """Whether the held-out tasks are scored after the step."""
    return step % training.evaluate_every == 0 or step == training.steps


def is_saved(training: "TrainingConfig", step: int) -> bool:
    """Whether a checkpoint is written after the step."""
    return step % training.checkpoint_every == 0 or step == training.steps


def logged_steps(training: "TrainingConfig") -> list[int]:
    """All steps that are logged, in order."""
    multiples = (step for each in _every(training) for step in range(each, training.steps + 1, each))
    return sorted({training.steps, *multiples})


def evaluations(training: "TrainingConfig") -> int:
    """How many steps are evaluated."""
    return _multiples(training.steps, training.evaluate_every)


def saves(training: "TrainingConfig") -> int:
    """How many steps are saved."""
    return _multiples(training.steps, training.checkpoint_every)


def is_snapshot(training: "TrainingConfig", step: int) -> bool:
    """Whether prototypes are kept at a logged step: the first from each of so many evenly spaced steps on."""
    wanted, before = training.prototype_snapshots, max((step - 1) // each * each for each in _every(training))
    return any(before < -(-k * training.steps // wanted) <= step for k in range(1, wanted + 1))


def _every(training: "TrainingConfig") -> tuple[int, int, int]:
    return training.log_every, training.evaluate_every, training.checkpoint_every


def _multiples(steps: int, every: int) -> int:
    return -(-steps // every)
