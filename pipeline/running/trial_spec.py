"""A trial as one value: what the sweep's driver hands to the trial's process, and that process to each worker."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.layout import TrialFolder
from pipeline.remote.trial import RemoteTrial
from pipeline.settings.config import Experiment
from pipeline.storage.opening import open_storage


@dataclass(frozen=True)
class TrialSpec:
    """The trial `key`. Ray pickles it: the settings, validated when the trial was made, are not validated again.

    Args:
        data: where the shards are; see `pipeline.storage.storage.location`.
        train_fn: what each worker runs, as "package.module:name", so that workers alone import it, and torch with it.
            It is called with this value.
        session: names the command that the trial runs under.
        user_code: the digest of the user's own code, which the workers must find too; None: it is not compared.
        trials: the URI of the folder in a storage where the sweep's trials lie, with whatever secrets it needs; None
            where they lie in `folder` alone.
        verbose: whether Ray logs.
        attempt: its number; 0 until it has begun.
        kept: a folder for what the trial's process writes to workers that it keeps for the next trial; None: the
            trial's workers end with it. Of it, workers themselves know nothing.
    """

    key: str
    experiment: Experiment
    folder: TrialFolder
    data: str
    train_fn: str
    session: str
    user_code: str | None = None
    trials: str | None = None
    verbose: bool = False
    attempt: int = 0
    kept: Path | None = None

    @property
    def remote(self) -> RemoteTrial | None:
        """Where it lies in a storage."""
        return None if self.trials is None else RemoteTrial(open_storage(self.trials), self.key)
