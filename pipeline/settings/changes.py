"""Settings replaced from the command line, each as FIELD=VALUE."""

from typing import Any

from pipeline.errors import UserError


def parse_changes(changes: tuple[str, ...]) -> dict[str, Any]:
    """The settings that --set replaces, by their dotted names."""
    from pipeline.settings.yaml_file import parse_value

    values = {}
    for change in changes:
        field, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: expected FIELD=VALUE, for example --set training.steps=100")
        values[field.strip()] = parse_value(text, f"--set {field.strip()}")
    return values
