"""The trainer of trainer.py, made of Ray Train's internals."""

import asyncio
from pathlib import Path
from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.files import write_whole

_NOT_NEEDED = (DatasetsCallback, PlacementGroupCleanerCallback)


class LeanTrainer(DataParallelTrainer):
    """A trainer whose controller runs in this process. What it holds of the cluster is noted in the file `held`.

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
