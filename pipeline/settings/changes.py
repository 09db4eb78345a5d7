"""Settings that are replaced: as FIELD=VALUE of the command line, by a program, and in what an experiment holds."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


def parse_changes(changes: tuple[str, ...]) -> dict[str, Any]:
    """The settings that --set replaces, by their dotted names.

    Raises:
        UserError: one is not FIELD=VALUE, or a field is set twice.
    """
    from pipeline.settings.yaml_file import parse_value

    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for change in changes:
        field, equals, text = change.partition("=")
        field = field.strip()
        if not equals:
            raise UserError(f"--set {change}: expected FIELD=VALUE, for example --set training.steps=100")
        if field in texts:
            raise UserError(f"--set {field}: is set twice, to {texts[field]} and to {text}; expected once")
        texts[field], values[field] = text, parse_value(text, f"--set {field}")
    return values


def check_changes(changes: Any) -> None:
    """Whether a program gave settings by name.

    Raises:
        UserError: it did not.
    """
    if changes is None or (isinstance(changes, Mapping) and all(isinstance(field, str) for field in changes)):
        return
    raise UserError(f'changes: found {changes!r}; expected settings by name, as in {{"training.steps": 40}}')


def command_words(
    name: str, config: str | Path, changes: Mapping[str, Any] | None, scale: str | None, output: str | Path
) -> list[str]:
    """The words of the command that does the same as a call."""
    words = ["tiny-onn", name, str(config), *(["--scale", scale] if scale else [])]
    for setting, value in (changes or {}).items():
        words += ["--set", f"{setting}={value if isinstance(value, str) else json.dumps(value)}"]
    return [*words, "--output", str(output)]


def put(place: dict[str, Any], name: str, value: Any, field: str, names: Collection[str]) -> list[str]:
    """Sets `place[name]`, called `field`, and returns what was set; of a group of settings, only what `value` names.

    `names` are the settings that there are. A mapping with keys of one's own, as `sweep.grid`, is replaced whole.
    """
    there = place.get(name)
    is_group = any(each.startswith(f"{field}.") for each in names)
    if is_group and isinstance(there, dict) and isinstance(value, dict):
        return [each for key, part in value.items() for each in put(there, key, part, f"{field}.{key}", names)]
    place[name] = value
    return [field]
