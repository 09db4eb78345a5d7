"""Which workers did not come to where the others wait: told by marks in a folder, as their network no longer can."""

import contextlib
import re
import time
from collections.abc import Iterator

import torch.distributed as dist

from pipeline.storage.storage import Storage
from pipeline.training.stopping import MissingRanks

_MARK = re.compile(r"rank-([0-9]{1,6})")
_FOR_MARKS_S = 5.0  # by when all whom a timeout has hit will have left theirs


@contextlib.contextmanager
def naming_missing_ranks(marks: Storage) -> Iterator[None]:
    """Has a collective operation that timed out, or lost a peer, end as MissingRanks.

    Each worker that was there marks it in the folder `marks`, which all reach and no other run uses; who has left no
    mark was not.
    """
    try:
        yield
    except RuntimeError as error:
        if not (dist.is_initialized() and _is_of_a_collective(error)):
            raise
        match = re.search(r"gloo/[^\]]*\] *([^\n]*)", str(error))
        reason = match[1].strip() if match else str(error).strip()
        with contextlib.suppress(OSError):  # of a full disk; what is known is told all the same
            (marks / f"rank-{dist.get_rank()}").write_bytes(b"here")
        deadline = time.monotonic() + _FOR_MARKS_S
        everyone = set(range(dist.get_world_size())) - {dist.get_rank()}
        try:
            while len(absent := everyone - _marked(marks)) > 1 and time.monotonic() < deadline:
                time.sleep(0.1)
        except OSError as away:
            raise MissingRanks(
                f"the workers lost their connection ({reason}); which rank was missing is not known: {away}"
            ) from error
        if not absent:
            raise MissingRanks(f"the workers lost their connection, although no rank was missing ({reason})") from error
        who = ", ".join(map(str, sorted(absent)))
        raise MissingRanks(f"rank {who} did not arrive where the others waited ({reason})") from error


def _marked(marks: Storage) -> set[int]:
    return {int(match[1]) for name in marks.files() if (match := _MARK.fullmatch(name))}


def _is_of_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
