"""Which arms are the baselines that others are measured against, and in which order arms are shown."""

from tiny_onn.arms import BASELINES, canonical

_FIRST = ("per_token", "aggregated", "metric_only")


def is_baseline(arm: str) -> bool:
    """Whether the arm is a baseline of the field, with a router that the task loss trains or with none."""
    return canonical(arm) in BASELINES


def order_of_arms(arm: str) -> tuple[int, str]:
    """Sorts the decision record's arms first, in its order, then the others by name, the baselines last."""
    return (_FIRST.index(arm) if arm in _FIRST else len(_FIRST) + is_baseline(arm), arm)
