"""What is said at the end of a sweep. Real ends are in test_sweep and the drills."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.layout import Output
from pipeline.records.state import State
from pipeline.running.outcome import SweepOutcome, outcome_of, print_end
from pipeline.running.progress import TrialProgress
from pipeline.settings.trials import trials_of
from tests.pipeline.toy_training import toy_experiment


def test_survived_faults_and_checkpoint_problems_are_reported(tmp_path: Path) -> None:
    experiment = toy_experiment()
    output = Output(tmp_path)
    progress = [TrialProgress(trial, output.trial("toy", trial.key)) for trial in trials_of(experiment)]
    for one in progress:
        one.folder.root.mkdir(parents=True)
    first, second, third = progress
    first.folder.survived(1).write_text("rank 1: ActorDiedError: SIGKILL\n\nmore of it")
    first.folder.result.write_text(json.dumps({"checkpoint_problems": ["step-000008: sha256 00, expected 11"]}))
    second.folder.result.write_text(json.dumps({"checkpoint_problems": ["finished by an earlier command"]}))
    third.folder.failure.write_text("rank 0: ValueError: no\nmore of it")
    screen = io.StringIO()
    outcome = SweepOutcome(2, 3, {third.trial.key: third.folder.failure.read_text()})
    print_end(outcome, [], progress, [first, third], Console(file=screen), "tiny-onn ablate x.yaml", "tiny-onn sync x")
    assert screen.getvalue().splitlines() == [
        "per_token-s0 was taken up again after: rank 1: ActorDiedError: SIGKILL",
        "per_token-s0 went on from an older checkpoint: step-000008: sha256 00, expected 11",
        "task_only-s0 failed: rank 0: ValueError: no",
        f"  all of it in {third.folder.failure}",
        "1 of 3 trials failed.",
        "Go on with:",
        "  tiny-onn ablate x.yaml --resume",
    ]


@pytest.mark.parametrize("raw", [b"[1]", b'{"checkpoint_problems": 3}', b'{"checkpoint_problems": [{}]}', b"\xff{"])
def test_a_damaged_result_or_reason_does_not_end_the_sweep(tmp_path: Path, raw: bytes) -> None:
    experiment = toy_experiment()
    progress = [TrialProgress(trial, Output(tmp_path).trial("toy", trial.key)) for trial in trials_of(experiment)][:2]
    for one in progress:
        one.folder.root.mkdir(parents=True)
    progress[0].folder.result.write_bytes(raw)
    progress[0].folder.survived(1).write_bytes(raw)
    progress[1].folder.failure.write_bytes(b"\xff" + b"x" * 2**21)
    progress[1].read(State.FAILED)
    outcome = outcome_of(progress, None)
    assert len(outcome.failures[progress[1].trial.key]) == 2**20 + 1
    screen = io.StringIO()
    print_end(outcome, [], progress, progress, Console(file=screen), "tiny-onn ablate x.yaml", "tiny-onn sync x")
    assert "went on from an older checkpoint" not in screen.getvalue()
    assert "1 of 2 trials failed" in screen.getvalue()
