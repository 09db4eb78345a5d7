"""Ray Train with few processes: what a trial needs beside its workers is its own process and one for their barriers.

As it comes, Ray Train starts three more for every trial, each with an interpreter's memory and seconds of imports: a
controller, one that serves Ray Data, and one, always on the head, that cleans up after a controller that died. Here the
controller is an object in the trial's process, which would only wait for it. No torch: workers alone import it.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from ray import PlacementGroupID
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from pipeline.files import write_whole

_NOT_NEEDED = (DatasetsCallback, PlacementGroupCleanerCallback)


class LeanTrainer(DataParallelTrainer):
    """A trainer for use inside an actor. What it holds of the cluster is noted in the file `held`.

    Should its process die, `give_back` is to be called: Ray gives back what an actor has reserved only when the whole
    job has ended, and whoever takes the trial up again would wait for room until then.
    """

    def __init__(self, *arguments: Any, held: Path, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held = held

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, _NOT_NEEDED)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        held = self._held

        class NotedWorkerGroup(WorkerGroup):
            def _create_placement_group(self, *arguments: Any) -> Any:
                handle = super()._create_placement_group(*arguments)
                write_whole(held, handle.placement_group.id.hex())
                return handle

        class Controller(TrainController):
            worker_group_cls = NotedWorkerGroup

        controller = Controller(**arguments)
        asyncio.run(controller.run())
        return controller.get_result()


def give_back(held: Path) -> None:
    """Gives back what a trial whose process died held of the cluster, as noted in `held`; nothing if it has been."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(held.read_text()))))
        held.unlink()
