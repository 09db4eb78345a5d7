"""What workers raise, in a room without torch: what reaches a trial's process has its module imported there."""

from pipeline.errors import UserError


class TrainingStopped(UserError):
    """Training cannot go on. The message says why, and where the evidence and the last good state are."""


class MissingRanks(RuntimeError):
    """A collective operation failed for want of some ranks, which the message names."""
