"""An index: which files there are of an attempt, and what each must be. Their names tell what they are.

What no longer changes is sealed: a segment is a file that names such files, and the index then names the segment in
place of them; many segments are sealed in turn. So the index, which is put after every log, stays small however long
the run.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.foreign_json import DamagedJson, integer, parse_object

_METRICS, _CHECKPOINTS, _SEGMENTS = "metrics/", "checkpoints/", "segments/"
_LAST = ("result.json", "pruned.json")
SEALED_TOGETHER = 32  # files that a segment names

KIB, MIB, TIB = 2**10, 2**20, 2**40
MOST_INDEX_BYTES, MOST_FILES = 4 * MIB, 20_000
# What an attempt may put, and how large each may be: nothing else that an index names is taken.
_SHAPES: dict[str, tuple[re.Pattern[str], int]] = {
    name: (re.compile(shape), most)
    for name, shape, most in (
        ("metrics", r"metrics/[0-9]{15}\.jsonl", 4 * MIB),
        ("segments", r"segments/[0-9]{6}\.json", MIB),
        ("checkpoints", r"checkpoints/step-[0-9]{6,12}/(state\.safetensors|manifest\.json)", TIB),
        ("prototypes", r"prototypes/step-[0-9]{6,12}\.safetensors", 64 * 1024 * MIB),
        ("distributions", r"distributions/step-[0-9]{6,12}\.json", 64 * MIB),
        ("routing_maps", r"routing_maps/[0-9]{1,3}/step-[0-9]{6,12}\.safetensors", 64 * MIB),
        ("figures", r"figures/[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/step-[0-9]{6,12}\.png", 64 * MIB),
        ("model", r"model/(weights\.safetensors|model\.json|MLmodel)", TIB),
        ("best_model", r"best_model/(weights\.safetensors|model\.json|MLmodel)", TIB),
        *((f"{name}.json", rf"{name}\.json", 16 * MIB) for name in ("result", "pruned", "config", "placement")),
        *((f"{name}.json", rf"{name}\.json", 1024 * MIB) for name in ("predictions", "distributions")),
    )
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Stored:
    """How many bytes of a file count, and their sha256."""

    size: int
    sha256: str


Index = dict[str, Stored]
"""By the file's path in the trial's folder."""


def parse_index(data: bytes, source: object) -> Index:
    """What `written` made, and nothing else: names in the shapes that an attempt writes, sizes within their bounds.

    Raises:
        DamagedJson: it is not; names `source`.
    """
    try:
        entries = parse_object(data, source, MOST_INDEX_BYTES)
        if len(entries) > MOST_FILES:
            raise ValueError(f"it names {len(entries):,} files, at most {MOST_FILES:,} are possible")
        return {name: _stored(name, value) for name, value in entries.items()}
    except (DamagedJson, ValueError) as error:
        raise DamagedJson(
            f"{source}: is not the index of a trial ({error}). Remove it to start this trial anew."
        ) from None


def written(index: Mapping[str, Stored]) -> bytes:
    """An index, or a segment of it, as JSON."""
    return json.dumps({name: (stored.size, stored.sha256) for name, stored in index.items()}).encode()


def is_allowed(name: str) -> bool:
    """Whether an attempt may put a file of this name."""
    return _most_bytes(name) is not None


def metrics_in(index: Mapping[str, Any]) -> list[str]:
    """The names of the pieces of the metrics, in order."""
    return sorted(name for name in index if name.startswith(_METRICS))


def segments_in(index: Mapping[str, Any]) -> list[str]:
    """The names of the segments, oldest first."""
    return sorted(name for name in index if name.startswith(_SEGMENTS))


def checkpoints_in(index: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each checkpoint, oldest first, the names of its files."""
    by_step: dict[str, list[str]] = {}
    for name in index:
        if name.startswith(_CHECKPOINTS):
            by_step.setdefault(name.split("/")[1], []).append(name)
    return dict(sorted(by_step.items(), key=lambda each: (len(each[0]), each[0])))  # a longer number is a later step


def has_ended(index: Mapping[str, Any]) -> bool:
    """Whether there is nothing left to run: the trial is finished, or pruned."""
    return any(name in index for name in _LAST)


def piece_name(start: int) -> str:
    """The name of the piece that begins at byte `start` of the spool."""
    return f"{_METRICS}{start:015d}.jsonl"


def piece_start(name: str) -> int:
    """At which byte of the spool the piece of this name begins."""
    return int(name.removeprefix(_METRICS).split(".")[0])


def next_segment(index: Mapping[str, Any]) -> str:
    """The name of a new segment: its number is above those of all that it can name."""
    return f"{_SEGMENTS}{max(map(_number, segments_in(index)), default=-1) + 1:06d}.json"


def is_inner(name: str, segment: str) -> bool:
    """Whether a segment can name this file: another segment only if it is older, so that no circle comes of it."""
    return not name.startswith(_SEGMENTS) or _number(name) < _number(segment)


def to_seal(index: Index) -> list[str]:
    """The names of SEALED_TOGETHER files that change no more, once there are so many; else none.

    Of the metrics and of the distributions the last piece still grows; of the others one stays for simplicity.
    """
    pieces: list[str] = []
    for kind in (_METRICS, "distributions/", "routing_maps/", "figures/"):
        pieces += sorted((name for name in index if name.startswith(kind)), key=lambda n: (len(n), n))[:-1]
    for names in (pieces, segments_in(index)):
        if len(names) >= SEALED_TOGETHER:
            return names[:SEALED_TOGETHER]
    return []


def _number(segment: str) -> int:
    return int(segment.removeprefix(_SEGMENTS).removesuffix(".json"))


def _most_bytes(name: str) -> int | None:
    shape, most = _SHAPES.get(name.partition("/")[0], (None, 0))
    return most if shape is not None and shape.fullmatch(name) else None


def _stored(name: str, value: Any) -> Stored:
    most = _most_bytes(name)
    if most is None:
        raise ValueError(f"{name[:80]!r} is not a file that an attempt writes")
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name}: expected [size, sha256]")
    size, sha256 = value
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"{name}: expected 64 hexadecimal digits of a sha256")
    return Stored(integer(size, most=most), sha256)
