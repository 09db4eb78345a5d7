"""Reads YAML without its traps: no tags, no aliases, no duplicate keys, and numbers as people write them."""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pipeline.errors import UserError

_LONGEST_BYTES = 1_000_000
_DEEPEST = 20
_LONGEST_NUMBER = 300  # digits; Python itself refuses 4300 with another error


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses tags, aliases, duplicate keys and depths, and takes YAML 1.2's booleans and floats."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            _refuse("aliases are not supported; write the value out", event)
        if event.tag is not None:
            _refuse(f"tags are not supported, found {event.tag!r}", event)
        if self._depth > _DEEPEST:
            _refuse(f"nested more than {_DEEPEST} deep", event)
        if isinstance(event, yaml.ScalarEvent) and not event.value.isprintable() and _is_half_a_character(event.value):
            _refuse("text holds half a character, a surrogate", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > _LONGEST_NUMBER:
            _refuse(f"a number of {len(node.value)} digits", node)
        return super().construct_yaml_int(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                _refuse(f"keys must be text, found {key!r}", key_node)
            if key in seen:
                _refuse(f"key {key!r} stands twice (first on line {seen[key]})", key_node)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _refuse(problem: str, where: Any) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, where.start_mark)


def _is_half_a_character(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in `path`.

    Raises:
        UserError: the file is absent, is not YAML, or holds anything but a mapping; names the file and the line.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST_BYTES + 1)
        text = raw.decode("utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({why}). Expected a YAML file in UTF-8.") from error
    if len(raw) > _LONGEST_BYTES:
        raise UserError(f"{path}: has more than {_LONGEST_BYTES} bytes. Expected a YAML file of settings.")
    value = _load(text, str(path))
    if not isinstance(value, dict):
        found_kind = "nothing" if value is None else type(value).__name__
        raise UserError(f"{path}: expected a mapping of settings at the top, found {found_kind}")
    return value


def parse_value(text: str, source: str) -> Any:
    """One value as it would be read from a file, for command-line options; `source` is named in the error.

    Raises:
        UserError: it is not YAML.
    """
    return _load(text, source)


def _load(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{source}, line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error
