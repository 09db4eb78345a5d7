"""Settings and options under the names that they had in the last version: they work in this one, with a warning."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from pipeline.errors import UserError

SETTINGS = {"training.generate_tasks": "training.decode_tasks"}
OPTIONS = {
    "--track-later": "--allow-offline-tracking",
    "--any-versions": "--skip-version-check",
    "--add": "--include",
}
ARGUMENTS = {"track_later": "allow_offline_tracking", "task": "given"}  # of functions
_WITH_SETTINGS_IN_THEM = ("scales.", "sweep.arm_settings.")  # and below each a name, then settings


P = ParamSpec("P")
R = TypeVar("R")
_format_others = warnings.formatwarning


class RenamedWarning(FutureWarning):
    """An old name was used."""


def warn_renamed(old: str, new: str, source: str = "") -> None:
    """Warns that `old` is called `new`; `source` is where it was found."""
    place = f"{source}: " if source else ""
    warnings.warn(
        f"{place}{old} is now called {new}. The next version will not accept the old name.",
        RenamedWarning,
        stacklevel=3,
    )


def format_warning(message: Warning | str, category: type[Warning], *place: Any, **named: Any) -> str:
    """For `warnings.formatwarning`: a RenamedWarning is one line without a place in the code."""
    if issubclass(category, RenamedWarning):
        return f"Warning: {message}\n"
    return _format_others(message, category, *place, **named)


def takes_old_names(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which takes its arguments by the names of the last version, too."""

    @functools.wraps(function)
    def called(*arguments: P.args, **named: P.kwargs) -> R:
        for old in ARGUMENTS.keys() & named.keys():
            new = ARGUMENTS[old]
            if new in named:
                raise TypeError(f"{function.__name__}: {old} and {new} are one argument; expected {new} alone")
            warn_renamed(old, new, f"{function.__name__}()")
            named[new] = named.pop(old)
        return function(*arguments, **named)

    return called


def current_setting(name: str) -> str:
    """A setting's dotted name today."""
    return SETTINGS.get(name, name)


def current_words(words: Sequence[str]) -> list[str]:
    """The words of a command line, with old names of options replaced and a warning for each."""
    current = []
    for word in words:
        option, equals, value = word.partition("=")
        if option in OPTIONS:
            warn_renamed(option, OPTIONS[option])
            word = f"{OPTIONS[option]}{equals}{value}"
        current.append(word)
    return current


def current_settings(values: Any, source: str | None = None, place: str = "") -> Any:
    """Settings as a file or a record has them, nested or by dotted names, by their names of today.

    Args:
        source: named in the warning for each old name; None, for what the user has not written just now, warns of none.
        place: the dotted name of the group that `values` is.

    Raises:
        UserError: a setting is there by both names.
    """
    if not isinstance(values, Mapping):
        return values
    current: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{place}.{name}" if place else str(name)
        new = name
        if path in SETTINGS:
            new = SETTINGS[path].rpartition(".")[2] if place else SETTINGS[path]
        elif name in SETTINGS:
            new = SETTINGS[name]
        if new != name:
            if new in values:
                raise UserError(f"{source or 'settings'}: {path} and {new} are one setting; expected {new} alone")
            if source is not None:
                warn_renamed(path, SETTINGS.get(path, str(new)), source)
        current[new] = current_settings(value, source, "" if path.startswith(_WITH_SETTINGS_IN_THEM) else path)
    return current
