"""Which experiment a folder belongs to, so that no two are ever mixed in one."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json, write_whole
from pipeline.settings.config import Experiment

_WITHOUT_EFFECT = ("description", "sweep.max_concurrent")  # on any trial's result


def claim(folder: Path, experiment: Experiment, data_hash: str, resume: bool, command: str) -> None:
    """Writes folder/sweep.json, or finds there that the folder is this experiment's own.

    Raises:
        UserError: it belongs to another experiment (named by what differs), or to this one and `resume` is False.
    """
    path = folder / "sweep.json"
    now = {"experiment": experiment.model_dump(mode="json"), "data_hash": data_hash}
    if not path.exists():
        write_whole(path, json.dumps(now, indent=1))
        return
    before = read_json(path)
    if not isinstance(before, dict):
        raise UserError(f"{path}: is not JSON. Remove {folder} to start over, or use another --output.")
    old, new = _flat(before), _flat(now)
    different = [f for f in sorted(old | new) if old.get(f) != new.get(f) and f not in _WITHOUT_EFFECT]
    if different:
        lines = [f"  {field}: there {_shown(old, field)}, now {_shown(new, field)}" for field in different]
        raise UserError(
            f"{folder}: holds another experiment of the name {experiment.name!r}:\n" + "\n".join(lines) + "\n"
            "Give this one another name (--set name=...) or another --output, or remove that folder."
        )
    if not resume:
        raise UserError(
            f"{folder}: this experiment has been started before. Go on with:\n  {command} --resume\n"
            "Finished trials are not repeated. To start over, remove that folder."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix.removeprefix("experiment."): value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def _shown(flat: dict[str, Any], field: str) -> str:
    return json.dumps(flat[field]) if field in flat else "nothing"
