"""A pruner as a sweep drives it: the trials are polled, and then compared."""

from collections.abc import Sequence

from pipeline.layout import TrialFolder
from pipeline.records.state import State
from pipeline.running.progress import TrialProgress
from pipeline.running.pruning import Pruner
from pipeline.settings.config import SweepConfig
from pipeline.settings.trials import Trial


class PolledPruner(Pruner):
    """Reads the spools of `trials` before each comparison."""

    def __init__(self, sweep: SweepConfig, trials: Sequence[tuple[Trial, TrialFolder]]) -> None:
        self._polled = [TrialProgress(trial, folder) for trial, folder in trials]
        for each in self._polled:
            each.read(State.WAITING)
        super().__init__(sweep, self._polled)

    def prune(self) -> list[str]:
        """As the Pruner does."""
        for each in self._polled:
            each.read(State.RUNNING)
        return super().prune()
