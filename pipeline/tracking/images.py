"""The images of a trial's run over the course of training: prototypes, routing maps, and what an observer has drawn."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.drawing import own_style
from pipeline.errors import UserError
from pipeline.layout import TrialFolder

if TYPE_CHECKING:
    from PIL.Image import Image

FIGURE = "prototype_distribution"
ROUTING_MAP = "routing_map"  # and _1, _2, ...: of a held-out task each
_STEP = re.compile(r"step-([0-9]{6,12})\.(?:safetensors|png)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST_BYTES, _MOST_PIXELS = 2**26, 2**26  # of an observer's figure: what is larger is not opened
_DPI = 110
_DRAWING = threading.Lock()  # matplotlib is not made for several threads


@dataclass(frozen=True)
class RunImage:
    """An image at a step. `key` is its name in MLflow, `name` in the memory of what was sent."""

    name: str
    key: str
    step: int
    path: Path
    make: "Callable[[Path], Image]"

    def render(self) -> "Image":
        """The image.

        Raises:
            UserError: the file that it is made of is damaged.
        """
        return self.make(self.path)


def run_images(folder: TrialFolder) -> list[RunImage]:
    """All images of a trial so far, by kind and step."""
    images = [_of(path, folder.prototypes, "", FIGURE, render_prototypes) for path in _steps(folder.prototypes)]
    for place in _folders(folder.routing_maps):
        if place.name.isdecimal():
            key, name = f"{ROUTING_MAP}_{place.name}", f"{folder.routing_maps.name}/{place.name}/"
            images += [_of(path, place, name, key, render_routing) for path in _steps(place)]
    for place in _folders(folder.figures):
        name = f"{folder.figures.name}/{place.name}/"
        images += [_of(path, place, name, place.name, open_figure) for path in _steps(place)]
    return images


def last_images(folder: TrialFolder) -> dict[str, RunImage]:
    """The last image of each kind, by its key."""
    return {each.key: each for each in run_images(folder)}


def render_prototypes(path: Path) -> "Image":
    """The prototype distribution in a snapshot, as an image."""
    with _DRAWING, own_style():
        from pipeline.tracking.prototypes import prototype_distribution

        return _image(lambda buffer: prototype_distribution(path).savefig(buffer, format="png"))


def render_routing(path: Path) -> "Image":
    """The routing map in a file, as an image."""
    from pipeline.training.routing_map import plot_map, read_map

    with _DRAWING, own_style():
        return _image(lambda buffer: plot_map(read_map(path)).savefig(buffer, format="png", dpi=_DPI))


def open_figure(path: Path) -> "Image":
    """A figure that an observer has drawn. The file may come from a storage: it is taken as PNG or not at all.

    Raises:
        UserError: it is no PNG, or too large.
    """
    from PIL import Image as pillow

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        image = pillow.open(path, formats=("PNG",))
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        image.load()
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable figure ({error}).") from error
    return image


def _of(path: Path, folder: Path, name: str, key: str, make: "Callable[[Path], Image]") -> RunImage:
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return RunImage(f"{name}{path.name}", key, int(match[1]), folder / path.name, make)


def _steps(folder: Path) -> list[Path]:
    there = ((_STEP.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in there if match)]


def _folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))


def _image(save: Callable[[BytesIO], object]) -> "Image":
    from PIL import Image as pillow  # matplotlib and its kin, only where something is drawn

    buffer = BytesIO()
    save(buffer)
    return pillow.open(buffer)
