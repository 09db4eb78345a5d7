"""Where a trial is in its life, as its folder says."""

from enum import StrEnum

from pipeline.layout import TrialFolder
from pipeline.records.attempts import last_attempt


class State(StrEnum):
    """Where a trial is in its life. A pruned one was ended early, a stopped one when the sweep was interrupted."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"
    STOPPED = "stopped"


def state_of(folder: TrialFolder, session: str) -> State:
    """The trial's state in the command `session`: what earlier commands began and did not finish is waiting."""
    if folder.result.exists():
        return State.FINISHED
    if folder.pruned.exists():
        return State.PRUNED
    attempt = last_attempt(folder)
    if attempt is None or attempt.session != session:
        return State.WAITING
    return State.FAILED if folder.failure.exists() else State.RUNNING
