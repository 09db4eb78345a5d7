"""What a driver remembers of a run in the tracker, in the shapes that it writes and no others: the files may come back
from a storage, and what they say goes into requests to the tracker."""

import re
from typing import Any

from pipeline.foreign_json import integer, text

_KEY = re.compile(r"[0-9a-f]{32}")
_FIGURE = re.compile(
    r"(?:routing_maps/[0-9]{1,3}/)?step-[0-9]{6,12}\.safetensors|figures/[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/step-[0-9]{6,12}\.png"
)
_MOST_FIGURES = 100_000
_STATUSES = ("FINISHED", "FAILED", "KILLED")


def run_memory(value: Any) -> dict[str, Any]:
    """Of a run: {"creation_key": hex, "run_id": hex, "described": hex}, the last two once there is a run.

    Raises:
        ValueError: it is something else.
    """
    found = _object(value, {"creation_key"}, {"run_id", "described"})
    for name, each in found.items():
        if not isinstance(each, str) or not _KEY.fullmatch(each):
            raise ValueError(f"{name} is not 32 hexadecimal digits")
    return found


def shipped_memory(value: Any) -> dict[str, Any]:
    """Of what a run has: {"run_id": hex, "offset": int, "figures": [file names], "ended": status or None}.

    Raises:
        ValueError: it is something else.
    """
    found = _object(value, {"run_id", "offset", "figures", "ended"}, set())
    run_memory({"creation_key": found["run_id"]})
    integer(found["offset"])
    figures = found["figures"]
    if not isinstance(figures, list) or len(figures) > _MOST_FIGURES:
        raise ValueError("figures is no list of file names")
    for figure in figures:
        if not _FIGURE.fullmatch(text(figure, 100)):
            raise ValueError(f"{figure!r} is no snapshot")
    if found["ended"] not in (None, *_STATUSES):
        raise ValueError("ended is no final status")
    return found


def prune_word(value: Any) -> dict[str, Any]:
    """That a trial is to end early: {"step": int, "metric": name, "value": number or None}.

    Raises:
        ValueError: it is something else.
    """
    found = _object(value, {"step"}, {"metric", "value"})
    integer(found["step"])
    text(found.get("metric", ""), 250)
    if not isinstance(found.get("value", None), int | float | None):
        raise ValueError("value is no number")
    return found


def _object(value: Any, needed: set[str], possible: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or not needed <= value.keys() <= needed | possible:
        raise ValueError(f"expected an object with {', '.join(sorted(needed))}")
    return value
