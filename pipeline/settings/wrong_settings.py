"""Says what is wrong with settings: the field, what was found, what was expected, and the nearest valid name."""

import difflib
import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError
from pipeline.settings.near_names import setting_hint

_LONGEST = 80
_BY_DOTTED_NAME = ("sweep.grid", "sweep.search.space")  # groups in which a dotted name is one word
NAME_RULE = (
    "expected 1 to 64 letters, digits, '.', '_' or '-', of which the first is a letter or digit: it names a folder"
)


def did_you_mean(unknown: str, names: Collection[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `names`, or nothing."""
    near = difflib.get_close_matches(unknown[:200], names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting's dotted name, groups before what they hold."""
    names = []
    for name, info in model.model_fields.items():
        kinds = [k for k in (info.annotation, *get_args(info.annotation)) if isinstance(k, type)]
        group = next((k for k in kinds if issubclass(k, BaseModel)), None)
        names.append(prefix + name)
        if group:
            names += setting_names(group, f"{prefix}{name}.")
    return names


def plain(value: Any, source: str) -> Any:
    """`value`, which a program may have given, if it could stand in a file; `source` is named in the error.

    Raises:
        UserError: it could not, as for example a Path or a number of numpy's.
    """
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        kind = type(value).__name__
        raise UserError(
            f"{source}: found {_cut(repr(value))}, a {kind}; expected text, a number, true or false, or a list or "
            "mapping of these; try str(...), int(...) or float(...)"
        ) from None
    return value


def why_no_setting(field: str, names: Collection[str]) -> str:
    """What is wrong with a dotted name that an experiment has no place for; `names` are the settings that there are."""
    if field in names:
        group = field.rpartition(".")[0]
        return f"cannot be set, as there is no `{group}` yet; set all of it: {group}={{{field[len(group) + 1 :]}: ...}}"
    for group in _BY_DOTTED_NAME:
        if field.startswith(f"{group}."):
            return f"cannot be set alone; set all of it: {group}={{{field[len(group) + 1 :]}: ...}}"
    return f"is no setting{setting_hint(field, names)}"


def unknown_varied(values: Any, names: Collection[str]) -> list[str]:
    """A line for each setting that the `sweep` or the `scales` of `values`, as a file has them, name by dots and that
    there is not. Where a part has another shape than it should, nothing is said of it here."""
    sweep = _part(values, "sweep")
    places: dict[str, Any] = {"sweep.grid": _part(sweep, "grid")}
    places["sweep.search.space"] = _part(_part(sweep, "search"), "space")
    for arm, settings in _part(sweep, "arm_settings").items():
        places[f"sweep.arm_settings.{arm}"] = settings
    for scale, settings in _part(values, "scales").items():
        places[f"scale {scale}"] = settings
    return [
        f"{_cut(place)}: {_cut(str(field))!r} is no setting{setting_hint(str(field), names)}"
        for place, fields in places.items()
        if isinstance(fields, dict)
        for field in fields
        if field not in names and not str(field).startswith(tuple(f"{group}." for group in _BY_DOTTED_NAME))
    ]


def _part(values: Any, name: str) -> dict[str, Any]:
    part = values.get(name) if isinstance(values, dict) else None
    return part if isinstance(part, dict) else {}


def together(source: str, lines: Sequence[str]) -> str:
    """A message of one problem on one line, of several on a line each."""
    return f"{source}: {lines[0]}" if len(lines) == 1 else "\n".join([f"{source}:", *(f"  {each}" for each in lines)])


def explain(error: Exception, source: str, names: Collection[str], also: Sequence[str] = ()) -> str:
    """The whole message: `source`, and a line for each problem; `names` are the settings that there are, `also` what
    else is wrong."""
    if not isinstance(error, ValidationError):
        return f"{source}: {error}"
    problems = error.errors()
    deeper = {problem["loc"][:-1] for problem in problems}  # a list whose items are all refused is not called empty too
    reported = [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in deeper]
    return f"{source}:\n" + "\n".join(f"  {line}" for line in [*(_line(each, names) for each in reported), *also])


def _line(problem: Any, names: Collection[str]) -> str:
    place, kind, value = ".".join(map(str, problem["loc"])), problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{_cut(place)}: no such setting{setting_hint(place, names)}"
    if kind == "missing":
        return f"{place}: is missing"
    if kind == "value_error":  # our own: its first word is the setting, without its group, or a colon for the group
        message = str(problem["ctx"]["error"])
        return f"{place}{'.' if place and not message.startswith(':') else ''}{message}"
    shown = "not a finite number" if isinstance(value, float) and not math.isfinite(value) else _cut(repr(value))
    if value is None:
        shown = "nothing"
    expected = problem["msg"][0].lower() + problem["msg"][1:]
    if kind == "literal_error":
        expected += did_you_mean(str(value), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    elif kind == "string_pattern_mismatch":
        expected = NAME_RULE
    elif kind in ("model_type", "dict_type"):
        expected = "expected settings by name, as {name: value} or one a line below it"
    elif kind == "tuple_type":
        alone = isinstance(value, str | int | float)
        expected = "expected a list" + (f", as in [{value}]" if alone and len(str(value)) < _LONGEST else "")
    elif kind == "too_short":
        expected = f"expected at least {problem['ctx']['min_length']} of them"
    elif kind == "int_type" and isinstance(value, float) and value.is_integer():
        expected += f"; write {value:.0f}"
    return f"{_cut(place) or 'settings'}: found {shown}; {expected}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
