"""How learning cost and Goodness are distributed, by layer, over the course of a run: counts in fixed bins, as JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import read_json, write_whole
from pipeline.foreign_json import DamagedJson, parse_object
from tiny_onn.histogram import COST_BINS, GOODNESS_BINS
from tiny_onn.routing_health import Health

FOLDER = "distributions"  # of pieces, in a trial's folder and among a run's files
STEPS_A_PIECE = 16
_PIECE = re.compile(r"step-[0-9]{6,12}\.json")


@dataclass(frozen=True)
class Distribution:
    """Counts of (token, expert) pairs. `counts[0]` are at most 10^edges[0], `counts[-1]` above 10^edges[-1]."""

    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Distributions:
    """A step's distributions by layer. `goodness` is of mas(Goodness): as a part of the token's best expert's."""

    step: int
    cost: dict[int, Distribution]
    goodness: dict[int, Distribution]


class DistributionPieces:
    """Adds distributions to a folder, in pieces of a few steps each: a step costs the same however long the run.

    A piece, `step-000100.json` by its first step, is a JSON object of its own; all but the last one change no more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._piece: Path | None = None
        self._last = -1  # the newest step in the piece
        self._texts: list[str] = []  # its steps as JSON: a few hundred times fewer objects than the numbers in it

    def add(self, step: int, layers: Mapping[int, list[Health]]) -> None:
        """Adds a step, its modules' counts summed by layer; later steps go, for training is not there yet.

        Without Goodness, as where no meta-loss is, nothing is written.
        """
        counts = [
            {
                "layer": layer,
                "cost": np.sum([health.costs.cpu().numpy() for health in modules], axis=0).tolist(),
                "goodness": np.sum([health.goodness.cpu().numpy() for health in modules], axis=0).tolist(),
            }
            for layer, modules in sorted(layers.items())
        ]
        if any(sum(layer["goodness"]) for layer in counts):
            self._add({"step": step, "layers": counts})

    def _add(self, entry: dict[str, Any]) -> None:
        if self._piece is None or (self._texts and self._last >= entry["step"]):
            self._go_back_before(entry["step"])
        if self._piece is None or len(self._texts) >= STEPS_A_PIECE:
            self._piece, self._texts = self._folder / f"step-{entry['step']:06d}.json", []
        self._texts.append(json.dumps(entry))
        self._last = entry["step"]
        edges = {"cost_log10_edges": COST_BINS.edges(), "goodness_log10_edges": GOODNESS_BINS.edges()}
        begun = json.dumps(edges).removesuffix("}")
        write_whole(self._piece, f'{begun}, "steps": [{", ".join(self._texts)}]}}')

    def _go_back_before(self, step: int) -> None:
        """Makes the piece that earlier steps were added to last the one that is added to."""
        earlier = [piece for piece in pieces_in(self._folder) if _first_step(piece.name) < step]
        for piece in set(pieces_in(self._folder)) - set(earlier):
            piece.unlink()
        self._piece, self._texts, self._last = (earlier[-1] if earlier else None), [], -1
        if self._piece is not None:
            content = read_json(self._piece)
            steps = content.get("steps") if isinstance(content, dict) else None
            known = [each for each in steps or [] if isinstance(each, dict) and isinstance(each.get("step"), int)]
            kept = [each for each in known if each["step"] < step]
            self._texts, self._last = (
                [json.dumps(each) for each in kept],
                max((each["step"] for each in kept), default=-1),
            )


def pieces_in(folder: Path) -> list[Path]:
    """The pieces in a folder, oldest first."""
    return sorted((path for path in folder.glob("step-*.json") if _PIECE.fullmatch(path.name)), key=_by_step)


def last_piece(names: Iterable[str]) -> str | None:
    """Of the names of files, that of the last piece."""
    return max(filter(_PIECE.fullmatch, names), key=_first_step, default=None)


def _by_step(piece: Path) -> int:
    return _first_step(piece.name)


def _first_step(name: str) -> int:
    return int(name.removeprefix("step-").removesuffix(".json"))


def last_distributions(text: str) -> Distributions:
    """Those of the last step in a piece's text; or in that of a `distributions.json` of before there were pieces.

    Raises:
        ValueError: the text is neither.
    """
    try:
        value = parse_object(text, "distributions")
        last = value["steps"][-1]
        edges = {name: np.array(value[f"{name}_log10_edges"], float) for name in ("cost", "goodness")}
        parts = {
            name: {int(each["layer"]): _distribution(edges[name], each[name]) for each in last["layers"]}
            for name in edges
        }
        return Distributions(int(last["step"]), **parts)
    except (DamagedJson, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a file of distributions ({error!r})") from error


def _distribution(edges: np.ndarray, counts: list[float]) -> Distribution:
    if len(counts) != len(edges) + 1:
        raise ValueError(f"{len(counts)} counts for {len(edges)} edges; expected one more than edges")
    return Distribution(edges, np.array(counts, float))
