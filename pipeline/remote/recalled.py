"""What an earlier driver left of a sweep in the storage, taken in allowed shapes only: anybody who can write there can
have changed it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.foreign_json import DamagedJson, parse_json, parse_object
from pipeline.foreign_names import ForeignName, inside
from pipeline.layout import TrialFolder
from pipeline.records.delivery import OLDER_FILE, delivery_state, older_shipped
from pipeline.records.pruned import prune_word

SUMMARY = "mlflow_summary.json"
MOST_CLAIM_BYTES = 4 * 2**20
MOST_TRACKED_BYTES = 64 * 2**20
_MOST_MEMORY_BYTES = 4 * 2**20


def parse_claim(text: str, source: object) -> str:
    """The text of `sweep.json`, which says of which experiment a sweep's folder is.

    Raises:
        UserError: it is none.
    """
    try:
        record = parse_object(text, source, MOST_CLAIM_BYTES)
        if not isinstance(record.get("experiment"), dict):
            raise DamagedJson(f"{source}: has no `experiment`")
    except DamagedJson as error:
        raise UserError(
            f"{error}. Expected the record of a sweep. Remove it to start there anew, or name another --storage."
        ) from None
    return text


def parse_tracked(data: bytes, source: object, folder: Path, trials: Iterable[TrialFolder]) -> dict[Path, str]:
    """The files that a driver remembers with, by their path in the sweep's `folder`; of these trials, and no others.

    Raises:
        UserError: there is anything else in it.
    """
    readers: dict[str, Callable[[Any], object]] = {SUMMARY: delivery_state}
    for place in trials:
        older = place.delivery.with_name(OLDER_FILE)
        for path, reader in ((place.delivery, delivery_state), (older, older_shipped), (place.prune, prune_word)):
            readers[path.relative_to(folder).as_posix()] = reader
    files: dict[Path, str] = {}
    try:
        for name, text in parse_object(data, source, MOST_TRACKED_BYTES).items():
            if name in readers:  # others are of trials that the sweep once had
                if not isinstance(text, str):
                    raise ValueError(f"{name}: expected text")
                readers[name](parse_json(text, name, _MOST_MEMORY_BYTES))
                files[inside(folder, name)] = text
    except (DamagedJson, ForeignName, ValueError) as error:
        raise UserError(
            f"{source}: is damaged ({error}). Remove it; the runs are then found by what MLflow has."
        ) from None
    return files
