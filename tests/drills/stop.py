"""What stops a trial, on all ranks at once, with the evidence kept."""

import json
from typing import Any

from tests.drills.faults import Fault
from tests.drills.scene import TRIAL, Scene, points, same_result
from tests.drills.survive import MIDDLE, ONE, attempts


def _evidence(scene: Scene, step: int, rank: int) -> dict[str, Any]:
    path = scene.trial().evidence / f"step-{step:06d}" / f"rank-{rank}" / "what.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def a_loss_is_not_finite_on_one_rank(scene: Scene) -> str:
    """A layer of rank 1 puts out NaN in step 7; then --resume without the fault."""
    ended = scene.run("train", *ONE, faults=[Fault("nan", rank=1, step=MIDDLE)])
    ended.expect(
        1, "step 7: non-finite task loss", "rank 1, first in blocks.1.attention.o, tasks ", "Evidence and state"
    )
    assert [_evidence(scene, MIDDLE, rank)["layer"] for rank in range(2)] == [None, "blocks.1.attention.o"]
    assert (scene.trial().evidence / "step-000007" / "rank-0" / "step-000006").is_dir()
    assert attempts(scene) == 1
    points(scene, TRIAL, "FAILED")
    scene.run("train", *ONE, "--resume").expect(0)
    same_result(scene)
    return (
        "all stop in step 7; rank, layer and tasks named, evidence of both ranks and the state of step 6 kept; not "
        "tried again by itself; run FAILED; resumed once mended: same result"
    )


def a_step_is_skipped(scene: Scene) -> str:
    """The same with training.on_nonfinite: skip."""
    options = ("--set", "training.on_nonfinite=skip")
    scene.run("train", *ONE, *options, faults=[Fault("nan", rank=1, step=MIDDLE)]).expect(0)
    counted = dict(points(scene, TRIAL, "FINISHED")["train/skipped_steps"])
    assert counted == {2: 0, 4: 0, 6: 0, 8: 1, 10: 1, 12: 1}, counted
    return "skipped on both ranks, counted in MLflow and result.json; the run goes on and ends FINISHED"


def replicas_drift_apart(scene: Scene) -> str:
    """A weight of rank 1 changes by 0.001 in step 7; replicas are compared every 4 steps."""
    ended = scene.run("train", *ONE, faults=[Fault("drift", rank=1, step=MIDDLE)])
    ended.expect(1, "step 8: the workers' replicas are out of step: ranks differ in ", "Evidence and state")
    for rank in range(2):
        assert (scene.trial().evidence / "step-000008" / f"rank-{rank}" / "step-000008").is_dir()
    assert attempts(scene) == 1
    points(scene, TRIAL, "FAILED")
    return "both stop in step 8; the first tensor that differs is named, the state of both ranks kept"


def a_captured_call_has_no_gradient(scene: Scene) -> str:
    """Rank 1 calls a layer once more in step 7 and drops what it puts out."""
    options = ("--set", "training.engine=hooks")
    ended = scene.run("train", *ONE, *options, faults=[Fault("forget", "forward", rank=1, step=MIDDLE)])
    ended.expect(1, "rank 1: TrainingStopped: step 7: call 1 of 'blocks.0.attention.q' got no gradient", "tasks ")
    assert _evidence(scene, MIDDLE, 1)["task_ids"]
    assert attempts(scene) == 1
    points(scene, TRIAL, "FAILED")
    return "the trial ends; rank, call, layer and tasks named, evidence and state of that rank kept"


DRILLS = (a_loss_is_not_finite_on_one_rank, a_step_is_skipped, replicas_drift_apart, a_captured_call_has_no_gradient)
