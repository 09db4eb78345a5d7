"""What is survived, with the same result as an undisturbed run."""

import os
import signal
import time

from pipeline import measures
from pipeline.records.attempts import last_attempt
from pipeline.training.checkpoint import checkpoints
from tests.drills.faults import EVERY, Fault
from tests.drills.scene import TRIAL, Scene, all_gone, points, processes_under, result, same_result, summary_status

MIDDLE = 7  # no checkpoint, no log
ONE = ("--set", "training.seed=0")
NO_RETRY = ("--set", "workers.max_failures=0")


def attempts(scene: Scene) -> int:
    """How often the first trial was taken up."""
    last = last_attempt(scene.trial())
    assert last is not None
    return last.number


def a_worker_is_killed(scene: Scene) -> str:
    """SIGKILL of one of two workers between forward and backward pass."""
    scene.run("train", *ONE, faults=[Fault("kill", "forward", rank=1, step=MIDDLE)]).expect(0, "was taken up again")
    same_result(scene)
    return f"taken up from step 4: {attempts(scene)} attempts, same result; told at the end"


def all_workers_are_killed(scene: Scene) -> str:
    """SIGKILL of both workers in the same step."""
    scene.run("train", *ONE, faults=[Fault("kill", "forward", step=MIDDLE)]).expect(0, "was taken up again")
    same_result(scene)
    return f"taken up from step 4: {attempts(scene)} attempts, same result"


def a_worker_dies_at_its_start(scene: Scene) -> str:
    """SIGKILL of a worker as its train function is entered, which Ray by itself does not survive."""
    scene.run("train", *ONE, faults=[Fault("kill", "entry", rank=1)]).expect(0, "was taken up again")
    same_result(scene)
    return f"taken up again: {attempts(scene)} attempts, same result"


def a_rank_dies_right_after_its_report(scene: Scene) -> str:
    """Rank 1 after the report of step 6, and rank 0 after the last report, before the result is written."""
    faults = [Fault("kill", "report", rank=1, step=6), Fault("kill", "report", rank=0, step=12)]
    scene.run("train", *ONE, "--set", "workers.max_failures=2", faults=faults).expect(0)
    same_result(scene)
    assert attempts(scene) == 3
    return "taken up from steps 4 and 12: 3 attempts, same result"


def the_trials_driver_is_killed(scene: Scene) -> str:
    """SIGKILL of the process in which Tune runs the trial, while its workers are in step 7."""
    process = scene.start_with("train", *ONE, faults=[Fault("hold", rank=0, step=MIDDLE)])
    worker = scene.held(process)
    drivers = [pid for pid, line in processes_under(process.pid).items() if "ImplicitFunc" in line]
    assert len(drivers) == 1, processes_under(process.pid)
    os.kill(drivers[0], signal.SIGKILL)
    scene.wait(process).expect(0, "the process that drove the trial ended without a word")
    assert not os.path.exists(f"/proc/{worker}")
    same_result(scene)
    return f"its workers end with it; taken up by another: {attempts(scene)} attempts, same result"


def the_sweep_is_killed(scene: Scene) -> str:
    """SIGKILL of `tiny-onn ablate` itself while one trial runs and one waits; then --resume."""
    process = scene.start_with("ablate", faults=[Fault("hold", rank=0, step=MIDDLE)])
    scene.held(process)
    began = processes_under(process.pid)
    process.kill()
    scene.wait(process)
    workers = all_gone({pid: line for pid, line in began.items() if "Train" in line or "ImplicitFunc" in line}, 60)
    others = all_gone(began, limit_s=300)
    points(scene, TRIAL, "RUNNING")
    scene.run("ablate", "--resume").expect(0)
    same_result(scene, TRIAL, "per_token-s1")
    assert summary_status(scene) == ["FINISHED"]
    return (
        f"its workers are gone after {workers:.0f} s, the last of Ray's processes after {workers + others:.0f} s; "
        "resumed in the same MLflow runs, none doubled, same result for both trials"
    )


def ctrl_c_while_a_trial_waits(scene: Scene) -> str:
    """Ctrl-C while one trial runs and one waits; then --resume."""
    return _interrupted(scene, "ablate", [signal.SIGINT], 130, "Ctrl-C")


def ctrl_c_twice(scene: Scene) -> str:
    """Ctrl-C, and again 0.2 s later; then --resume."""
    return _interrupted(scene, "ablate", [signal.SIGINT, signal.SIGINT], 130, "Ctrl-C")


def sigterm(scene: Scene) -> str:
    """SIGTERM; then --resume."""
    return _interrupted(scene, "ablate", [signal.SIGTERM], 143, "SIGTERM")


def _interrupted(scene: Scene, command: str, signals: list[int], code: int, name: str) -> str:
    process = scene.start_with(command, faults=[Fault("hold", rank=0, step=MIDDLE)])
    scene.held(process)
    began = processes_under(process.pid)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    ended = scene.wait(process).expect(code, f"Stopped by {name}: 0 of 2 trials", f"{command} ", "--resume")
    all_gone(began, limit_s=60)
    points(scene, TRIAL, "KILLED")
    assert summary_status(scene) == ["KILLED"]
    scene.run(command, "--resume").expect(0)
    same_result(scene, TRIAL, "per_token-s1")
    assert summary_status(scene) == ["FINISHED"]
    return (
        f"exit code {code} after {ended.seconds:.0f} s, the way to resume printed, runs KILLED, no process left; "
        "resumed in the same runs, same result"
    )


def the_newest_checkpoint_is_damaged(scene: Scene) -> str:
    """A bit of the newest checkpoint is flipped, after a run that was killed in step 11; then --resume."""
    _run_until_step_11(scene)
    state = checkpoints(scene.trial().checkpoints)[-1] / "state.safetensors"
    raw = bytearray(state.read_bytes())
    raw[len(raw) // 2] ^= 1
    state.write_bytes(raw)
    scene.run("train", *ONE, *NO_RETRY, "--resume").expect(0, "went on from an older checkpoint", "step-000008")
    same_result(scene)
    problems = result(scene.trial())["checkpoint_problems"]
    assert "sha256" in problems[0]
    return "the one before it is used; said on the terminal and in result.json; same result"


def the_newest_checkpoint_is_truncated(scene: Scene) -> str:
    """The newest checkpoint is cut to half its size, after a run that was killed in step 11; then --resume."""
    _run_until_step_11(scene)
    state = checkpoints(scene.trial().checkpoints)[-1] / "state.safetensors"
    os.truncate(state, state.stat().st_size // 2)
    scene.run("train", *ONE, *NO_RETRY, "--resume").expect(0, "went on from an older checkpoint", "step-000008")
    same_result(scene)
    return "the one before it is used; said on the terminal and in result.json; same result"


def _run_until_step_11(scene: Scene) -> None:
    scene.run("train", *ONE, *NO_RETRY, faults=[Fault("kill", "forward", rank=1, step=11)]).expect(1, "1 of 1 trials")
    assert [path.name for path in checkpoints(scene.trial().checkpoints)] == ["step-000004", "step-000008"]


def all_checkpoints_are_damaged(scene: Scene) -> str:
    """Every checkpoint is cut; then --resume."""
    _run_until_step_11(scene)
    spool = scene.trial().spool.read_bytes()
    for path in checkpoints(scene.trial().checkpoints):
        os.truncate(path / "state.safetensors", 100)
    scene.run("train", *ONE, *NO_RETRY, "--resume").expect(1, "no checkpoint can be used")
    assert scene.trial().spool.read_bytes() == spool
    assert not scene.trial().result.exists()
    points(scene, TRIAL, "FAILED")
    return "the trial fails and names each; never a silent restart at 0: nothing is logged"


def a_rank_is_slow(scene: Scene) -> str:
    """Rank 1 takes 0.7 s longer over every step."""
    scene.run("train", *ONE, faults=[Fault("sleep", rank=1, step=EVERY, times=EVERY, value=0.7)]).expect(0)
    same_result(scene)
    seconds = result(scene.trial())["metrics"][measures.STEP_SECONDS]
    assert seconds > 0.6, f"rank 0 waited for nobody: {seconds} s a step"
    return f"waited for, {seconds:.2f} s a step; same result"


def a_rank_has_fewer_rows(scene: Scene) -> str:
    """Row groups of 64, so that one rank has 64 sequences and the other 39; over more than an epoch."""
    options = ("--set", "data.rows_per_group=64", "--set", "training.steps=40")
    scene.run("train", *ONE, *options).expect(0)
    facts = result(scene.trial())
    assert facts["steps"] == 40
    assert facts["metrics"]["train/epoch"] >= 1, facts["metrics"]
    return "it splits its batches, so that all take as many steps; nothing hangs, no row is dropped or doubled"


def home_is_unset(scene: Scene) -> str:
    """No HOME in the environment, as under some batch systems."""
    scene.environment = {"HOME": None}
    scene.run("train", *ONE).expect(0)
    same_result(scene)
    return "same result"


DRILLS = (
    a_worker_is_killed,
    all_workers_are_killed,
    a_worker_dies_at_its_start,
    a_rank_dies_right_after_its_report,
    the_trials_driver_is_killed,
    the_sweep_is_killed,
    ctrl_c_while_a_trial_waits,
    ctrl_c_twice,
    sigterm,
    the_newest_checkpoint_is_damaged,
    the_newest_checkpoint_is_truncated,
    all_checkpoints_are_damaged,
    a_rank_is_slow,
    a_rank_has_fewer_rows,
    home_is_unset,
)
