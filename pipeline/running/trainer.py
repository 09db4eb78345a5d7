"""Ray Train with few processes: what a trial needs beside its workers is its own process and one for their barriers.

As it comes, Ray Train starts three more for every trial, each with an interpreter's memory and seconds of imports: a
controller, one that serves Ray Data, and one, always on the head, that cleans up after a controller that died. Here the
controller is an object in the trial's process, which would only wait for it. No torch: workers alone import it.

That takes private parts of Ray Train, which stand in `pipeline.ray_private`. Where Ray lacks one, its own trainer runs.
"""

import contextlib
from pathlib import Path
from typing import Any

from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group

from pipeline.ray_private import has, lean_trainer, own_trainer


def new_trainer(*arguments: Any, held: Path, **options: Any) -> Any:
    """A trainer for use inside an actor: a LeanTrainer, or Ray Train's own where that cannot be made."""
    if not has("lean trainer"):
        return own_trainer()(*arguments, **options)
    return lean_trainer()(*arguments, held=held, **options)


def give_back(held: Path) -> None:
    """Gives back what a trial whose process died held of the cluster, as noted in `held`; nothing if it has been."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(held.read_text()))))
        held.unlink()
