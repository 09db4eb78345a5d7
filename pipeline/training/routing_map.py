"""The routing map of a row: its tokens as cells, each in the colour of the expert that dominates there, by layer."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.colours import GRID_COLOURS
from pipeline.data.contract import Task, find_task
from pipeline.data.model_use import Layout
from pipeline.data.sequence import Sequence
from pipeline.data.tokens import grid_layout
from pipeline.errors import UserError
from pipeline.files import flush
from pipeline.foreign_json import DamagedJson, parse_json
from pipeline.training.checkpoint import write_tensors
from pipeline.training.model_file import TrainedModel
from pipeline.training.modes import in_evaluation_mode
from pipeline.training.places import places_of
from tiny_onn.routing_patterns import dominating_experts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECTION = "o"  # of each layer of our transformer: its experts are what the layer adds to the residual stream
NAMED = 10  # experts of a layer that have a colour of their own, those that dominate most cells; tab10 has as many
_WRITTEN = 5  # of them, that are written beside the layer
_NOTE = (
    "each cell by the expert with the largest routing weight at its token; colours are of the layer, right: expert and "
    "part of the cells; grey: other experts; white: none dominates"
)
_OTHERS, _NONE = (0.79, 0.79, 0.79), (1.0, 1.0, 1.0)  # colours
_LINES, _LINES_OF_ROW, _FRAME = 1.0, 0.45, 0.3  # greys: between cells, and around a panel
_PIXELS, _GAP = 16, 2  # of a cell, and cells between two panels
_WIDTH, _LEFT, _RIGHT, _HEAD = 9.6, 0.62, 1.0, 0.55  # inches
_NARROWEST, _LOWEST_ROW = 40, 4  # cells
_MOST_LAYERS, _MOST_TOKENS = 1000, 65_536
_LONGEST_LABEL = 64


@dataclass(frozen=True, eq=False)
class RoutingMap:
    """A row's n tokens as cells of a drawing, and the expert that dominates at each, [layers, n]; -1 for none.

    `labels` name the layers, as in "L0.o". `step` is that of training, None where it is not known.
    """

    task_id: str
    layout: Layout
    experts: np.ndarray
    labels: tuple[str, ...]
    step: int | None = None


@torch.no_grad()
def map_routing(
    model: nn.Module, row: Sequence, task: Task, *, projection: str | None = None, step: int | None = None
) -> RoutingMap:
    """Routes a row through the model, in one forward pass in evaluation mode.

    Args:
        projection: the experts of which module of each layer, by the last word of its name, as in "up" of "up.3". By
            default those of the module `o`, or of the layer's last where it has none.

    Raises:
        UserError: the model has no such module, or none that routes each token of the row once; or the task does not
            draw its rows.
    """
    if task.maps is None:
        raise UserError(f"routing map: data.task {task.name!r} draws no rows (Task.maps is None)")
    layout, n = task.maps.lay_out(row), len(row)
    if problem := layout.problem(n):
        raise UserError(f"routing map: the layout of row {row.task_id!r} by data.task {task.name!r} {problem}")
    batch = task.batch([row]).to(next(model.parameters()).device)
    with in_evaluation_mode(model), dominating_experts(model) as routed:
        model(*batch.inputs)
    places = places_of(routed)
    there = sorted({last for _, last in places.values()})
    if projection is not None and projection not in there:
        raise UserError(f"projection: found {projection!r}; expected one of the model's: {', '.join(there)}")
    wanted: dict[int, str] = {}
    for name, experts in routed.items():  # in the order of the model
        layer, last = places[name]
        chosen = last == projection or (projection is None and not _is_default(wanted.get(layer)))
        if chosen and experts.dim() == 2 and experts.shape[0] == 1 and experts.shape[1] >= n:
            wanted[layer] = name
    if not wanted:
        raise UserError("routing map: none of the model's layers routes each token once, as [1, tokens, experts]")
    names = [wanted[layer] for layer in sorted(wanted)]
    dominating = np.stack([routed[name][0, :n].cpu().numpy() for name in names]).astype(np.int32)
    return RoutingMap(row.task_id, layout, dominating, tuple("L{}.{}".format(*places[name]) for name in names), step)


def _is_default(name: str | None) -> bool:
    return name is not None and name.rpartition(".")[2] == PROJECTION


def row_of(model: TrainedModel, given: Any, *options: Any, **named: Any) -> Sequence:
    """The row that the model reads for `given`, a row itself or what the task makes a row of.

    Raises:
        UserError: the task makes no row of it, or one that is longer than the model was trained on.
    """
    name, most = model.experiment.data.task, model.experiment.data.max_tokens
    maps = find_task(name).maps
    if isinstance(given, Sequence):
        row = given
    elif maps is None or maps.row_of is None:
        raise UserError(
            f"routing map: found a {type(given).__name__}; expected a pipeline.tasks.Sequence, because data.task "
            f"{name!r} has no RoutingMaps.row_of"
        )
    else:
        row = maps.row_of(model, given, *options, **named)
    if len(row) > most:
        raise UserError(f"task {row.task_id}: has {len(row)} tokens; the model was trained on at most {most}")
    return row


def save_map(path: Path, drawn: RoutingMap) -> None:
    """As safetensors, whole or not at all.

    Raises:
        OSError: the disk is full, or will not be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, layout = path.with_name(f".{path.name}"), drawn.layout
    arrays = {"panels": layout.panels, "rows": layout.rows, "columns": layout.columns, "experts": drawn.experts}
    arrays |= {} if layout.colours is None else {"colours": layout.colours}
    tensors = {name: torch.from_numpy(np.asarray(array).astype(np.int32)) for name, array in arrays.items()}
    texts = {"letters": layout.letters, "arrows": layout.arrows, "labels": drawn.labels}
    facts = {"task_id": drawn.task_id, "title": layout.title, "step": str(drawn.step)}
    write_tensors(aside, tensors, {**facts, **{name: json.dumps(value) for name, value in texts.items()}})
    flush(aside)
    aside.rename(path)


def read_map(path: Path) -> RoutingMap:
    """What `save_map` wrote, now or in an earlier version.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        if any(tensor.dtype != torch.int32 for tensor in tensors.values()):
            raise ValueError("something else than whole numbers")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        experts = arrays["experts"]
        layers, n = experts.shape
        if not 0 < layers <= _MOST_LAYERS or not 0 < n <= _MOST_TOKENS or experts.min() < -1:
            raise ValueError(f"experts {list(experts.shape)}")
        if "tokens" in arrays:  # of an earlier version, which drew ARC's rows alone
            layout = grid_layout(arrays["tokens"], arrays["rows"], arrays["columns"])
            labels = [f"L{layer}.{facts['projection']}" for layer in range(layers)]
        else:
            places, colours = (arrays["panels"], arrays["rows"], arrays["columns"]), arrays.get("colours")
            letters, arrows = (parse_json(facts[name], name) for name in ("letters", "arrows"))
            title, labels = facts["title"][:_LONGEST_LABEL], parse_json(facts["labels"], "labels")
            layout = Layout(*places, colours, None if letters is None else tuple(letters), tuple(arrows), title)
        if problem := layout.problem(n):
            raise ValueError(f"its layout {problem}")
        if len(labels) != layers or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"{layers} layers with the labels {labels!r:.80}")
        step = None if facts["step"] == "None" else int(facts["step"])
        return RoutingMap(facts["task_id"], layout, experts, tuple(label[:_LONGEST_LABEL] for label in labels), step)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, DamagedJson) as error:
        raise UserError(f"{path}: not a readable routing map ({error}).") from error


def plot_map(drawn: RoutingMap, title: str = "") -> "Figure":
    """The row's panels in the tokens' own colours, and below them, for each layer, the same cells by the expert that
    dominates.

    Colours are matplotlib's tab10, in each layer given to its ten most frequent experts anew, so that a colour means
    something within a layer alone; grey is any other expert, white a token at which none dominates.

    Raises:
        UserError: nothing of the row is drawn.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    layout = drawn.layout
    panels = list(_panels(layout))
    if not panels:
        raise UserError(f"task {drawn.task_id}: its layout draws none of its tokens")
    layers, tab10 = len(drawn.experts), colormaps["tab10"].colors  # type: ignore[attr-defined]
    own = {value: to_rgb(colour) for value, colour in enumerate(GRID_COLOURS)}
    cells = np.concatenate([where for _, where, _, _ in panels])
    ranked = [_ranked(experts[cells]) for experts in drawn.experts]
    named = [{expert: tab10[n] for n, (expert, _) in enumerate(each[:NAMED])} for each in ranked]
    colours = np.full(len(layout.panels), -1) if layout.colours is None else layout.colours
    rows = [_row(layout, panels, colours, own, _LINES_OF_ROW)]
    rows += [_row(layout, panels, experts, of, _LINES) for experts, of in zip(drawn.experts, named, strict=True)]
    high, wide = rows[0].shape[0] / _PIXELS, rows[0].shape[1] / _PIXELS
    pitch = max(high, _LOWEST_ROW) + 1.0
    inch = (_WIDTH - _LEFT - _RIGHT) / max(wide, _NARROWEST)  # of a cell: a small row is not blown up
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
        for x in _arrows(layout, panels):
            axes.text(x, top + min(high, 2) / 2, "→", ha="center", va="center", fontsize=7)
        name = layout.title if place == 0 else drawn.labels[place - 1]
        axes.text(-0.08 / inch, middle, name, va="center", ha="right", fontsize=9, parse_math=False)
        if place == 0:
            for x, y, text in _letters(layout, panels):
                size = min(9.0, 50 * inch)  # points: two thirds of a cell
                axes.text(x, y, text, ha="center", va="center", fontsize=size, parse_math=False)
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
    words = title or f"Routing map of task {drawn.task_id}" + ("" if drawn.step is None else f", step {drawn.step}")
    figure.text(0.006, 1 - 0.17 / height, words, fontsize=10.5, va="center", parse_math=False)
    figure.text(0.006, 1 - 0.38 / height, _NOTE, fontsize=7, va="center", color="#555555")
    return figure


Panel = tuple[int, np.ndarray, int, int]
"""A panel's number, the places of its cells among the tokens, its height and its width."""


def _panels(layout: Layout) -> Iterator[Panel]:
    for panel in np.unique(layout.panels[layout.panels >= 0]).tolist():
        where = np.flatnonzero(layout.panels == panel)
        yield panel, where, int(layout.rows[where].max()) + 1, int(layout.columns[where].max()) + 1


def _ranked(cells: np.ndarray) -> list[tuple[int, int]]:
    """(expert, number of cells that it dominates), most first."""
    experts, counts = np.unique(cells[cells >= 0], return_counts=True)
    return sorted(zip(experts.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))


def _row(
    layout: Layout,
    panels: list[Panel],
    values: np.ndarray,
    colours: Mapping[int, tuple[float, float, float]],
    lines: float,
) -> np.ndarray:
    """The panels side by side, as pixels [height, width, 3] in the colours of their values; `lines` is a grey."""
    high = max(height for _, _, height, _ in panels)
    wide = sum(width for *_, width in panels) + _GAP * (len(panels) - 1)
    canvas, left = np.ones((high * _PIXELS + 1, wide * _PIXELS + 1, 3)), 0
    for _, where, height, width in panels:
        cells = np.ones((height, width, 3))
        for token in where:
            value = int(values[token])
            cells[layout.rows[token], layout.columns[token]] = _NONE if value < 0 else colours.get(value, _OTHERS)
        part = canvas[: height * _PIXELS + 1, left * _PIXELS : (left + width) * _PIXELS + 1]
        part[:-1, :-1] = cells.repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)
        part[::_PIXELS], part[:, ::_PIXELS] = lines, lines
        part[0], part[-1], part[:, 0], part[:, -1] = (_FRAME,) * 4
        left += width + _GAP
    return canvas


def _arrows(layout: Layout, panels: list[Panel]) -> Iterator[float]:
    """The middles of the gaps in which there is an arrow, in cells from the left."""
    left = 0
    for number, (panel, _, _, width) in enumerate(panels):
        left += width + _GAP
        if panel in layout.arrows and number + 1 < len(panels):
            yield left - _GAP / 2


def _letters(layout: Layout, panels: list[Panel]) -> Iterator[tuple[float, float, str]]:
    """The middle of each cell that something is written in, in cells from the left and the top, and the text."""
    left = 0
    for _, where, _, width in panels:
        for token in where if layout.letters is not None else ():
            assert layout.letters is not None
            yield left + float(layout.columns[token]) + 0.5, float(layout.rows[token]) + 0.5, layout.letters[token]
        left += width + _GAP
