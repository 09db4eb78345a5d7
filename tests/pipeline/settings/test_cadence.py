"""Which steps are logged, evaluated and saved, against a count of each of them, one by one."""

import math

from hypothesis import given
from hypothesis import strategies as st

from pipeline.settings import cadence
from pipeline.settings.config import TrainingConfig

EVERY = st.integers(1, 30)


def training(steps: int, log: int, evaluate: int, save: int, snapshots: int = 4) -> TrainingConfig:
    every = {"log_every": log, "evaluate_every": evaluate, "checkpoint_every": save}
    return TrainingConfig(steps=steps, warmup_steps=0, prototype_snapshots=snapshots, **every)


def test_intervals_shorter_than_that_of_the_log_and_no_multiples_of_it_are_honoured() -> None:
    settings = training(20, log=10, evaluate=8, save=3)
    assert cadence.logged_steps(settings) == [3, 6, 8, 9, 10, 12, 15, 16, 18, 20]
    assert [step for step in range(1, 21) if cadence.is_evaluated(settings, step)] == [8, 16, 20]
    assert [step for step in range(1, 21) if cadence.is_saved(settings, step)] == [3, 6, 9, 12, 15, 18, 20]


@given(st.integers(1, 60), EVERY, EVERY, EVERY)
def test_what_is_counted_beforehand_is_what_comes(steps: int, log: int, evaluate: int, save: int) -> None:
    settings = training(steps, log, evaluate, save)
    every = range(1, steps + 1)
    assert cadence.logged_steps(settings) == [step for step in every if cadence.is_logged(settings, step)]
    assert cadence.evaluations(settings) == sum(cadence.is_evaluated(settings, step) for step in every)
    assert cadence.saves(settings) == sum(cadence.is_saved(settings, step) for step in every)


@given(st.integers(1, 60), EVERY, EVERY, EVERY, st.integers(0, 8))
def test_each_snapshot_is_of_the_first_logged_step_that_is_late_enough(
    steps: int, log: int, evaluate: int, save: int, wanted: int
) -> None:
    settings = training(steps, log, evaluate, save, wanted)
    logged = cadence.logged_steps(settings)
    due = {next(step for step in logged if step >= math.ceil(k * steps / wanted)) for k in range(1, wanted + 1)}
    assert {step for step in logged if cadence.is_snapshot(settings, step)} == due
