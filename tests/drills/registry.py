"""All drills by name, and how one is run."""

import time
from collections.abc import Callable
from pathlib import Path

from tests.drills import cluster_drill, flat, machines, ray_up_drill, stop, survive
from tests.drills.scene import Scene, Skipped

__all__ = ["DRILLS", "Skipped", "rehearse", "run_drill"]

Drill = Callable[[Scene], str]


DRILLS: dict[str, Drill] = {
    drill.__name__: drill
    for module in (survive, stop, machines, flat, cluster_drill, ray_up_drill)
    for drill in module.DRILLS
}


def rehearse(place: Path) -> Scene:
    """The undisturbed run that the drills are compared with; the one that is there, if it ended well."""
    if (place / "undisturbed" / "ended-well").exists():
        return Scene(place / "undisturbed", anew=False)
    scene = Scene(place / "undisturbed")
    scene.run("ablate").expect(0)
    (scene.output / "ended-well").touch()
    return scene


def run_drill(name: str, place: Path, reference: Scene) -> tuple[str, float]:
    """Runs one drill in a folder of its own; returns what was seen, and the seconds that it took.

    Raises:
        AssertionError: it did not go as it should.
        Skipped: it cannot be tried here.
    """
    scene = Scene(place / name, reference)
    began = time.monotonic()
    try:
        seen = DRILLS[name](scene)
    finally:
        scene.end()
    return seen, time.monotonic() - began
