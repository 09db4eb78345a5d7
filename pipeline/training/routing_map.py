"""The routing map of an ARC task: its grids, each cell coloured by the expert that dominates there, layer by layer."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.colours import GRID_COLOURS
from pipeline.data.batch import collate
from pipeline.data.given import task_given
from pipeline.data.sequence import Sequence
from pipeline.data.task import COLOURS, Task
from pipeline.data.tokens import INPUT, OUTPUT, encode_task
from pipeline.errors import UserError
from pipeline.files import flush
from pipeline.training.checkpoint import write_tensors
from pipeline.training.model_file import TrainedModel
from pipeline.training.places import places_of
from tiny_onn.routing_patterns import dominating_experts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECTION = "o"  # of each layer, whose experts are shown: what the layer adds to the residual stream
NAMED = 10  # experts of a layer that have a colour of their own, those that dominate most cells; tab10 has as many
_WRITTEN = 5  # of them, that are written beside the layer
_NOTE = (
    "each cell by the expert with the largest routing weight at its token; colours are of the layer, right: expert and "
    "part of the cells; grey: other experts; white: none dominates"
)
_OTHERS, _NONE = (0.79, 0.79, 0.79), (1.0, 1.0, 1.0)  # colours
_LINES, _LINES_OF_TASK, _FRAME = 1.0, 0.45, 0.3  # greys: between cells, and around a grid
_PIXELS, _GAP = 16, 2  # of a cell, and cells between two grids
_WIDTH, _LEFT, _RIGHT, _HEAD = 9.6, 0.62, 1.0, 0.55  # inches
_NARROWEST, _LOWEST_ROW = 40, 4  # cells
_MOST_LAYERS, _MOST_TOKENS = 1000, 65_536


@dataclass(frozen=True, eq=False)
class RoutingMap:
    """A task's tokens with their coordinates, [n], and the expert that dominates at each, [layers, n]; -1 for none.

    `step` is that of training, None where it is not known.
    """

    task_id: str
    tokens: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    experts: np.ndarray
    projection: str = PROJECTION
    step: int | None = None


@torch.no_grad()
def map_routing(
    model: nn.Module, sequence: Sequence, *, projection: str = PROJECTION, step: int | None = None
) -> RoutingMap:
    """Routes a task through the model, in one forward pass.

    Args:
        projection: q, k, v or o: the experts of which module of each layer.

    Raises:
        UserError: it is none of these.
    """
    if projection not in tuple("qkvo"):
        raise UserError(f"projection: found {projection!r}; expected q, k, v or o")
    batch = collate([sequence]).to(next(model.parameters()).device)
    with dominating_experts(model) as found:
        model(*batch.inputs)
    wanted = sorted((layer, name) for name, (layer, last) in places_of(found).items() if last == projection)
    if not wanted:
        raise UserError(f"projection: the model has no layer that is called {projection}: it is not ours, but your own")
    experts = torch.stack([found[name][0] for _, name in wanted])
    known = sequence.tokens, *sequence.coordinates, experts.cpu().numpy()
    tokens, rows, columns, dominating = (np.asarray(each, dtype=np.int32) for each in known)
    return RoutingMap(sequence.task_id, tokens, rows, columns, dominating, projection, step)


def sequence_of(model: TrainedModel, task: Any, pair: int) -> Sequence:
    """A task with one of its test pairs, as the model reads it.

    Raises:
        UserError: see `pipeline.api.routing_map`.
    """
    model.require_task("arc")
    known = task if isinstance(task, Task) else task_given(task)
    if not 0 <= pair < len(known.test):
        raise UserError(f"task {known.task_id}: has no test pair {pair}; there are {len(known.test)}, from 0")
    sequence, most = encode_task(known, pair), model.experiment.data.max_tokens
    if len(sequence) > most:
        raise UserError(f"task {known.task_id}: has {len(sequence)} tokens; the model was trained on at most {most}")
    return sequence


def save_map(path: Path, found: RoutingMap) -> None:
    """As safetensors, whole or not at all.

    Raises:
        OSError: the disk is full, or will not be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    tensors = {name: torch.from_numpy(getattr(found, name)) for name in ("tokens", "rows", "columns", "experts")}
    write_tensors(aside, tensors, {"task_id": found.task_id, "projection": found.projection, "step": str(found.step)})
    flush(aside)
    aside.rename(path)


def read_map(path: Path) -> RoutingMap:
    """What `save_map` wrote.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        tokens, experts = tensors["tokens"], tensors["experts"]
        n = len(tokens)
        shapes = [tuple(tensors[name].shape) for name in ("tokens", "rows", "columns", "experts")]
        if n > _MOST_TOKENS or shapes != [(n,), (n,), (n,), (len(experts), n)] or not 0 < len(experts) <= _MOST_LAYERS:
            raise ValueError(f"shapes {shapes}")
        if any(tensor.dtype != torch.int32 for tensor in tensors.values()):
            raise ValueError("something else than whole numbers")
        arrays = [tensors[name].numpy() for name in ("tokens", "rows", "columns", "experts")]
        if any(array.min(initial=0) < low for array, low in zip(arrays, (0, 0, 0, -1), strict=True)):
            raise ValueError("numbers below 0")
        if max(array.max(initial=0) for array in arrays[1:3]) > 255:
            raise ValueError("coordinates of no grid")
        step = None if facts["step"] == "None" else int(facts["step"])
        ids, rows, columns, dominating = arrays
        return RoutingMap(facts["task_id"], ids, rows, columns, dominating, facts["projection"], step)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a readable routing map ({error}).") from error


def plot_map(found: RoutingMap, title: str = "") -> "Figure":
    """The task's grids in ARC's colours, and below them, for each layer, the same cells by the expert that dominates.

    Colours are matplotlib's tab10, in each layer given to its ten most frequent experts anew, so that a colour means
    something within a layer alone; grey is any other expert, white a token at which none dominates.

    Raises:
        UserError: there is no grid.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    grids = list(_grids(found))
    if not grids:
        raise UserError(f"task {found.task_id}: has no grid to draw")
    layers, tab10 = len(found.experts), colormaps["tab10"].colors  # type: ignore[attr-defined]
    arc = {value: to_rgb(colour) for value, colour in enumerate(GRID_COLOURS)}
    cells = np.concatenate([where for where, _, _ in grids])
    ranked = [_ranked(experts[cells]) for experts in found.experts]
    named = [{expert: tab10[n] for n, (expert, _) in enumerate(each[:NAMED])} for each in ranked]
    rows = [_row(found, grids, found.tokens, arc, _LINES_OF_TASK)]
    rows += [_row(found, grids, experts, of, _LINES) for experts, of in zip(found.experts, named, strict=True)]
    high, wide = rows[0].shape[0] / _PIXELS, rows[0].shape[1] / _PIXELS
    pitch = max(high, _LOWEST_ROW) + 1.0
    inch = (_WIDTH - _LEFT - _RIGHT) / max(wide, _NARROWEST)  # of a cell: a small task is not blown up
    figure = Figure(figsize=(_WIDTH, _HEAD + inch * pitch * (layers + 1)))
    height = figure.get_figheight()
    across = (_WIDTH - _LEFT - _RIGHT) / inch
    axes = figure.add_axes((_LEFT / _WIDTH, 0, 1 - (_LEFT + _RIGHT) / _WIDTH, 1 - _HEAD / height))
    axes.set(xlim=(0, across), ylim=(pitch * (layers + 1), 0))
    axes.set_axis_off()
    line = 0.135 / inch  # between two lines of text, in cells
    for place, image in enumerate(rows):
        top, middle = place * pitch, place * pitch + high / 2
        extent = (0, wide, top + high, top)
        axes.imshow(image, extent=extent, interpolation="nearest", aspect="auto", clip_on=False)
        for x in _arrows(grids):
            axes.text(x, top + min(high, 2) / 2, "→", ha="center", va="center", fontsize=7)
        name = f"{len(grids) // 2} pairs" if place == 0 else f"L{place - 1}.{found.projection}"
        axes.text(-0.08 / inch, middle, name, va="center", ha="right", fontsize=9)
        if place == 0:
            continue
        lines = ranked[place - 1][:_WRITTEN]
        for number, (expert, count) in enumerate(lines):
            y = middle + (number - (len(lines) - 1) / 2) * line
            words = f"{expert:>4}  {100 * count / len(cells):3.0f} %"
            axes.text(across + 0.05 / inch, y, "■", color=named[place - 1][expert], fontsize=9, va="center")
            axes.text(across + 0.16 / inch, y, words, fontsize=7, va="center", family="monospace")
        more = len(ranked[place - 1]) - len(lines)
        if more or not lines:
            words = f"+ {more} more" if lines else "no expert dominates"
            y = middle + (len(lines) + 1) / 2 * line
            axes.text(across + 0.05 / inch, y, words, fontsize=7, va="center", color="#555555")
    words = title or f"Routing map of task {found.task_id}" + ("" if found.step is None else f", step {found.step}")
    figure.text(0.006, 1 - 0.17 / height, words, fontsize=10.5, va="center")
    figure.text(0.006, 1 - 0.38 / height, _NOTE, fontsize=7, va="center", color="#555555")
    return figure


def _grids(found: RoutingMap) -> Iterator[tuple[np.ndarray, int, int]]:
    """Of each grid the places of its cells among the tokens, its height and its width."""
    starts = [*np.flatnonzero((found.tokens == INPUT) | (found.tokens == OUTPUT)), len(found.tokens)]
    for start, stop in itertools.pairwise(starts):
        places = np.arange(start + 1, stop)
        where = places[(found.tokens[places] < COLOURS) & (found.rows[places] > 0) & (found.columns[places] > 0)]
        if len(where):
            yield where, int(found.rows[where].max()), int(found.columns[where].max())


def _ranked(cells: np.ndarray) -> list[tuple[int, int]]:
    """(expert, number of cells that it dominates), most first."""
    experts, counts = np.unique(cells[cells >= 0], return_counts=True)
    return sorted(zip(experts.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))


def _row(
    found: RoutingMap,
    grids: list[tuple[np.ndarray, int, int]],
    values: np.ndarray,
    colours: Mapping[int, tuple[float, float, float]],
    lines: float,
) -> np.ndarray:
    """The grids side by side, as pixels [height, width, 3] in the colours of their values; `lines` is a grey."""
    high, wide = max(height for _, height, _ in grids), sum(width for _, _, width in grids) + _GAP * (len(grids) - 1)
    canvas, left = np.ones((high * _PIXELS + 1, wide * _PIXELS + 1, 3)), 0
    for where, height, width in grids:
        cells = np.ones((height, width, 3))
        for token in where:
            value = int(values[token])
            cells[found.rows[token] - 1, found.columns[token] - 1] = _NONE if value < 0 else colours.get(value, _OTHERS)
        part = canvas[: height * _PIXELS + 1, left * _PIXELS : (left + width) * _PIXELS + 1]
        part[:-1, :-1] = cells.repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)
        part[::_PIXELS], part[:, ::_PIXELS] = lines, lines
        part[0], part[-1], part[:, 0], part[:, -1] = (_FRAME,) * 4
        left += width + _GAP
    return canvas


def _arrows(grids: list[tuple[np.ndarray, int, int]]) -> Iterator[float]:
    """The places between an input and its output."""
    left = 0
    for number, (_, _, width) in enumerate(grids):
        left += width + _GAP
        if number % 2 == 0 and number + 1 < len(grids):
            yield left - _GAP / 2
