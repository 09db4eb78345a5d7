"""Which arms are the baselines that others are measured against, and what arms were called before."""

# Routers that the task loss trains, or none at all: what the field would use at the same density.
BASELINES = frozenset({"top_k", "remoe", "switch", "magnitude", "magnitude_ste", "dense", "task_only"})
_FIRST = ("per_token", "aggregated", "metric_only")


def canonical(arm: str) -> str:
    """The name of an arm today: `none` was renamed `task_only`."""
    return "task_only" if arm == "none" else arm


def is_baseline(arm: str) -> bool:
    """Whether the arm is one of BASELINES."""
    return canonical(arm) in BASELINES


def order_of_arms(arm: str) -> tuple[int, str]:
    """Sorts the decision record's arms first, in its order, then the others by name, the baselines last."""
    return (_FIRST.index(arm) if arm in _FIRST else len(_FIRST) + is_baseline(arm), arm)
