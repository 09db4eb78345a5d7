"""How much of a cluster a sweep may use now."""

import time
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.running.cluster import fit, nodes
from pipeline.settings.config import WorkersConfig

_POLL_EVERY_S = 3.0


class Capacity:
    """How many trials run at once: as many as the cluster has room for now, since machines come and go.

    Args:
        asked: what each trial may ask for.
        wanted: run no more than this.

    Raises:
        UserError: at first, there is no room for a single one.
    """

    def __init__(self, asked: Sequence[WorkersConfig], wanted: int) -> None:
        self._asked, self._wanted = list(dict.fromkeys(asked)), wanted
        self.at_once = min(fit(workers, nodes(), wanted) for workers in self._asked)
        self.lacking: str | None = None  # why there is not even room for one any more
        self._polled_at = time.monotonic()

    def refresh(self) -> int:
        """`at_once`, looked at anew every few seconds; at least 1: a trial waits for its room by itself."""
        if time.monotonic() - self._polled_at >= _POLL_EVERY_S:
            there = nodes()
            try:
                self.at_once = min(fit(workers, there, self._wanted) for workers in self._asked)
                self.lacking = None
            except UserError as error:
                self.at_once, self.lacking = 1, str(error)
            self._polled_at = time.monotonic()
        return self.at_once

    @property
    def taken(self) -> str | None:
        """What is free of a cluster whose rest others have, so that there is no room for a trial now; else None."""
        import ray

        free = ray.available_resources()
        cpus, gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
        if all(w.cpus * w.count <= cpus + 1e-6 and w.gpus * w.count <= gpus + 1e-6 for w in self._asked):
            return None
        return f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if any(w.gpus for w in self._asked) else "")
