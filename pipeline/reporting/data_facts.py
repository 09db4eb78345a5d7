"""What a run's data set says of itself in MLflow."""

from typing import Any

from pipeline.foreign_json import DamagedJson, parse_json
from pipeline.tracking.store import plain


def parse_data(name: str, profile: str) -> dict[str, Any]:
    """What a run's data set says of itself in MLflow; of older runs less, and of what is no such text its name alone.

    Texts are plain, and all else is numbers: the page shows it.
    """
    try:
        parsed = parse_json(profile, name)
    except DamagedJson:
        parsed = None
    return {"name": plain(name), **(_plain(parsed) if isinstance(parsed, dict) else {})}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {plain(str(name)): _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return plain(value) if isinstance(value, str) else value
