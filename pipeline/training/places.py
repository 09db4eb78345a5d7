"""Where in a model each SparseProtoLinear is: a layer and a name in it, by which metrics are called."""

import re
from collections.abc import Iterable

_PLAIN = re.compile(r"[^A-Za-z0-9_]")


def places_of(names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """(layer, projection) of each module, by its name in the model.

    The layer is the first number in the name, and the projection its last word: (3, "q") of "blocks.3.attention.q"; or,
    where nothing follows the number, the word before it: (3, "up") of "up.3". Where two modules of a layer end alike,
    all after the number tells them apart: (0, "attention_out"). Modules without a number, or that are still alike, are
    layers of their own, in the model's order, after the numbered ones.
    """
    names = list(names)
    for of in (_short, _long):
        by_name = {name: place for name in names if (place := of(name)) is not None}
        if len(set(by_name.values())) == len(by_name):
            break
    taken: set[tuple[int, str]] = set()
    places: dict[str, tuple[int, str]] = {}
    following = max((layer for layer, _ in by_name.values()), default=-1) + 1
    for name in names:
        place = by_name.get(name)
        if place is None or place in taken:
            place, following = (following, _word(name.rpartition(".")[2])), following + 1
        taken.add(place)
        places[name] = place
    return places


def _short(name: str) -> tuple[int, str] | None:
    return _place(name, whole=False)


def _long(name: str) -> tuple[int, str] | None:
    return _place(name, whole=True)


def _place(name: str, whole: bool) -> tuple[int, str] | None:
    words = name.split(".")
    at = next((place for place, word in enumerate(words) if word.isdecimal()), None)
    if at is None:
        return None
    named = words[at + 1 :] or words[at - 1 : at]
    return int(words[at]), _word("_".join(named if whole else named[-1:]))


def _word(text: str) -> str:
    return _PLAIN.sub("_", text) or "layer"
