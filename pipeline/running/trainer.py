"""Ray Train with few processes: what a trial needs beside its workers is its own process and one for their barriers.

As it comes, Ray Train starts three more for every trial, each with an interpreter's memory and seconds of imports: a
controller, one that serves Ray Data, and one, always on the head, that cleans up after a controller that died. Here the
controller is an object in the trial's process, which would only wait for it. No torch: workers alone import it.

That takes parts of Ray Train which are no public API. Where a version of Ray has them no longer, its own trainer runs.
"""

import contextlib
from pathlib import Path
from typing import Any

from ray import PlacementGroupID
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group


def new_trainer(*arguments: Any, held: Path, **options: Any) -> DataParallelTrainer:
    """A trainer for use inside an actor: a LeanTrainer, or Ray Train's own where that cannot be made."""
    try:
        from pipeline.running.lean_trainer import LeanTrainer
    except ImportError:
        return DataParallelTrainer(*arguments, **options)
    return LeanTrainer(*arguments, held=held, **options)


def give_back(held: Path) -> None:
    """Gives back what a trial whose process died held of the cluster, as noted in `held`; nothing if it has been."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(held.read_text()))))
        held.unlink()
