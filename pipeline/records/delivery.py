"""The state of a run's delivery to the tracker: one file, which is read only in the form in which it is written. It may
come from a storage, and its values go into requests to the tracker."""

import json
import re
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files import read_json, write_whole
from pipeline.foreign_json import integer, text

_KEY = re.compile(r"[0-9a-f]{32}")
_FIGURE = re.compile(
    r"(?:routing_maps/[0-9]{1,3}/)?step-[0-9]{6,12}\.safetensors|figures/[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/step-[0-9]{6,12}\.png"
)
_MOST_FIGURES = 100_000
_STATUSES = ("FINISHED", "FAILED", "KILLED")
_SHIPPED = {"offset", "figures", "ended"}
OLDER_FILE = "shipped.json"  # beside it, in which an older version kept the last three


@dataclass
class DeliveryState:
    """What a run in the tracker has of its folder.

    `creation_key` is the tag by which the run is found, whether or not an answer to its creation arrived; `run_id` its
    id once it has been created and described, else None. `offset` is the byte of the spool up to which its metrics were
    sent, `figures` names the images that were, and `ended` is the final status that it was given, None while it runs.
    """

    creation_key: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str | None = None
    offset: int = 0
    figures: list[str] = field(default_factory=list)
    ended: str | None = None

    def belongs_to(self, run_id: str) -> None:
        """The run with this id is described. Where it is another than before, nothing has been sent to it."""
        if self.run_id != run_id:
            self.run_id, self.offset, self.figures, self.ended = run_id, 0, [], None


def read_delivery(path: Path) -> DeliveryState | None:
    """What `write_delivery`, or an older version, wrote; None where there is no such file, or it is damaged."""
    record = read_json(path)
    try:
        state = delivery_state(record)
    except ValueError:
        return None
    older = path.with_name(OLDER_FILE)
    if record.keys().isdisjoint(_SHIPPED) and older.exists():
        try:
            shipped = older_shipped(read_json(older))
        except ValueError:
            return state
        if shipped.pop("run_id") == state.run_id:
            return DeliveryState(state.creation_key, state.run_id, **shipped)
    return state


def write_delivery(path: Path, state: DeliveryState) -> None:
    """Writes it whole or not at all; what an older version wrote goes."""
    write_whole(path, json.dumps(asdict(state)))
    path.with_name(OLDER_FILE).unlink(missing_ok=True)


def delivery_state(value: Any) -> DeliveryState:
    """Of `value`, JSON that was read: {"creation_key": hex, "run_id": hex or null, "offset": int, "figures": [file
    names], "ended": status or null}; or the first two alone, and "described", as an older version wrote them.

    Raises:
        ValueError: it is something else.
    """
    possible = {"creation_key", "run_id", "described"} | _SHIPPED
    if not isinstance(value, dict) or not {"creation_key"} <= value.keys() <= possible:
        raise ValueError("expected an object with creation_key")
    for name in ("creation_key", "run_id", "described"):
        if name == "creation_key" or value.get(name) is not None:
            _hex(name, value[name])
    run_id = value.get("run_id")
    if run_id is None or value.get("described", run_id) != run_id:
        return DeliveryState(value["creation_key"])
    shipped = {name: value[name] for name in _SHIPPED & value.keys()}
    return DeliveryState(value["creation_key"], run_id, **_checked_shipped(shipped))


def older_shipped(value: Any) -> dict[str, Any]:
    """Of an older version's file: {"run_id": hex, "offset": int, "figures": [file names], "ended": status or null}.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, dict) or value.keys() != {"run_id"} | _SHIPPED:
        raise ValueError("expected an object with ended, figures, offset, run_id")
    _hex("run_id", value["run_id"])
    return {"run_id": value["run_id"], **_checked_shipped({name: value[name] for name in _SHIPPED})}


def _checked_shipped(shipped: dict[str, Any]) -> dict[str, Any]:
    integer(shipped.get("offset", 0))
    figures = shipped.get("figures", [])
    if not isinstance(figures, list) or len(figures) > _MOST_FIGURES:
        raise ValueError("figures: expected a list of file names")
    for figure in figures:
        if not _FIGURE.fullmatch(text(figure, 100)):
            raise ValueError(f"{figure!r} is not the file name of an image")
    if shipped.get("ended") not in (None, *_STATUSES):
        raise ValueError("ended: expected FINISHED, FAILED, KILLED or null")
    return shipped


def _hex(name: str, value: Any) -> None:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise ValueError(f"{name} is not 32 hexadecimal digits")
