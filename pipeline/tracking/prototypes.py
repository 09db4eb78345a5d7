"""The prototype distribution of a snapshot, as a figure."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pipeline.colours import BAD, GOOD, INACTIVE
from pipeline.errors import UserError

_MODULE = re.compile(r"L(\d+)\.(\w+)/prototypes")
_PROJECTIONS = "qkvo"
_SEEN_SELDOM = 0.001  # an expert that fewer tokens activate counts as inactive
_MOST_TENSORS, _WIDEST = 100_000, 16_384  # modules by parts, and inputs of a layer: a matrix of their square is made
_RADIUS = 0.45  # of a panel in the prototype distribution, in units of the distance between panels


def prototype_distribution(snapshot: Path) -> Figure:
    """Layers x projections, each the first two principal components of its expert prototypes.

    The snapshot holds, for each module `L<layer>.<projection>`, `/prototypes` [O, I], `/activation` [O] (fraction of
    valid tokens for which the expert is active) and, where there is Goodness, `/good` [O] (fraction for which it is
    judged good). An expert that at most a thousandth of the tokens activate is inactive; of the active, those judged
    good for at least half as many tokens as activate them are good, the others bad. Each panel has a scale of its own.

    Raises:
        UserError: the file is damaged or holds no module.
    """
    tensors = _read(snapshot)
    modules = {(int(m[1]), m[2]): m[0].rpartition("/")[0] for m in map(_MODULE.fullmatch, tensors) if m}
    if not modules:
        raise UserError(f"{snapshot}: no prototypes in it, found {sorted(tensors)[:5]}; expected `L0.q/prototypes`.")
    _check_shapes(snapshot, tensors, modules.values())
    layers = sorted({layer for layer, _ in modules})
    projections = sorted({name for _, name in modules}, key=lambda name: (_PROJECTIONS.find(name) % 9, name))
    points, colours = [], []
    figure = Figure(figsize=(2.1 * len(projections) + 0.8, 1.65 * len(layers) + 0.6), dpi=80)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))  # one for all panels: an Axes each would take most of the time
    for (layer, projection), name in sorted(modules.items(), key=lambda m: (m[0][0], projections.index(m[0][1]))):
        column, row = projections.index(projection), layers.index(layer)
        activation, good = tensors[f"{name}/activation"], tensors.get(f"{name}/good")
        points.append(_spread(tensors[f"{name}/prototypes"]) + np.array([column, -row]))
        colours.append(_judged(activation, good))
        axes.text(
            column, -row + 0.49, f"L{layer}.{projection}   {_percent(activation.mean())} active",
            ha="center", va="center", fontsize=9,
        )  # fmt: skip
    x, y = np.concatenate(points).T
    axes.scatter(x, y, c=np.concatenate(colours), s=15, linewidths=0)
    axes.set_xlim(-0.6, len(projections) - 0.4)
    axes.set_ylim(-len(layers) + 0.42, 1.12)
    axes.set_axis_off()
    has_good = any(name.endswith("/good") for name in tensors)
    words = [(GOOD, "good"), (BAD, "bad: active, seldom judged good")] if has_good else [(BAD, "active (no Goodness)")]
    handles = [
        Line2D([], [], ls="", marker="o", markersize=6, color=colour, label=label)
        for colour, label in [*words, (INACTIVE, "inactive")]
    ]
    step = int(snapshot.stem.rpartition("-")[2])
    axes.text(-0.55, 0.95, f"Prototype distribution, step {step}: principal components 1 and 2", fontsize=11, ha="left")
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.58, 0.9), bbox_transform=axes.transData,
                ncols=3, frameon=False, fontsize=9, handletextpad=0.1, columnspacing=1.2)  # fmt: skip
    return figure


def _read(snapshot: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(snapshot)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{snapshot}: not a readable prototype snapshot ({error}).") from error


def _check_shapes(snapshot: Path, tensors: dict[str, np.ndarray], modules: Iterable[str]) -> None:
    """Raises UserError unless each module has [O, I] prototypes and [O] of what is known of each expert."""
    if len(tensors) > _MOST_TENSORS:
        raise UserError(f"{snapshot}: {len(tensors)} tensors; a snapshot has at most {_MOST_TENSORS}.")
    for name in modules:
        prototypes = tensors[f"{name}/prototypes"]
        experts = prototypes.shape[:1]
        known = [tensors.get(f"{name}/activation"), tensors.get(f"{name}/good", np.zeros(experts))]
        whole = prototypes.ndim == 2 and prototypes.size and prototypes.shape[1] <= _WIDEST
        if not whole or any(each is None or each.shape != experts for each in known):
            raise UserError(f"{snapshot}: {name} lacks a part, or one has another shape than its prototypes.")
        if any(each is not None and each.dtype.kind not in "fiu" for each in (prototypes, *known)):
            raise UserError(f"{snapshot}: {name} holds something else than numbers.")


def _spread(prototypes: np.ndarray) -> np.ndarray:
    """[O, I] -> [O, 2]: the first two principal components, scaled to a circle of the panel's radius."""
    centred = np.nan_to_num(prototypes.astype(np.float64))
    centred /= np.abs(centred).max() or 1.0  # squares of what has run away would be infinite
    centred -= centred.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # for two components cheaper than the SVD of [O, I]
    flat = centred @ axes[:, ::-1][:, :2]
    if flat.shape[1] < 2:
        flat = np.column_stack([flat, np.zeros(len(flat))])
    largest = np.hypot(*flat.T).max()
    return _RADIUS * 0.9 * flat / largest if largest > 0 else flat


def _judged(activation: np.ndarray, good: np.ndarray | None) -> np.ndarray:
    """The colour of each expert."""
    is_good = np.zeros(len(activation), bool) if good is None else good >= 0.5 * activation
    return np.where(activation <= _SEEN_SELDOM, INACTIVE, np.where(is_good, GOOD, BAD))


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"
