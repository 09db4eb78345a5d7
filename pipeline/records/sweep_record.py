"""What a sweep's folder says of the sweep: sweep.json, its record."""

from pathlib import Path
from typing import Any

from pipeline.files import read_json

RECORD = "sweep.json"


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a sweep's folder; empty where there is none, or it is damaged."""
    record = read_json(folder / RECORD)
    return record if isinstance(record, dict) and isinstance(record.get("experiment"), dict) else {}


def grown(folder: Path) -> str:
    """What the sweep in `folder` has come to have more of since it was begun, and when; "" where nothing."""
    descriptions = read_record(folder).get("grown")
    return "; ".join(each for each in descriptions if isinstance(each, str)) if isinstance(descriptions, list) else ""


def sweep_id(folder: Path) -> str | None:
    """The random id of the sweep in `folder`, which distinguishes its runs from those of others with its name.

    "" of a sweep that was begun before there were ids, whose runs have none; None where there is no record.
    """
    record = read_record(folder)
    return str(record.get("id", "")) if record else None
