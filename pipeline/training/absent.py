"""Which workers did not come to where the others wait: told by marks on the disk, as the network no longer can."""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

_FOR_MARKS_S = 5.0  # by when all whom a timeout has hit will have left theirs


class RanksAbsent(RuntimeError):
    """A collective operation failed for want of some ranks, which the message names."""


@contextlib.contextmanager
def naming_the_absent(marks: Path) -> Iterator[None]:
    """Has a collective operation that timed out, or lost a peer, end as RanksAbsent.

    Each worker that was there marks it in the folder `marks`, which all see and no other run uses; who has left no
    mark was not.
    """
    try:
        yield
    except RuntimeError as error:
        if not (dist.is_initialized() and _is_of_a_collective(error)):
            raise
        with contextlib.suppress(OSError):  # of a full disk; what is known is told all the same
            marks.mkdir(parents=True, exist_ok=True)
            (marks / f"rank-{dist.get_rank()}").touch()
        deadline = time.monotonic() + _FOR_MARKS_S
        everyone = set(range(dist.get_world_size())) - {dist.get_rank()}
        while len(absent := everyone - _marked(marks)) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        said = re.search(r"gloo/[^\]]*\] *([^\n]*)", str(error))
        reason = said[1].strip() if said else str(error).strip()
        if not absent:
            raise RanksAbsent(f"the workers lost each other, though none was missing ({reason})") from error
        who = ", ".join(map(str, sorted(absent)))
        raise RanksAbsent(f"rank {who} did not arrive where the others waited ({reason})") from error


def _marked(marks: Path) -> set[int]:
    return {int(path.name.removeprefix("rank-")) for path in marks.glob("rank-*")}


def _is_of_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
