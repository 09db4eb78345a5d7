"""The one call that gives a run's model back, from MLflow or from the trial's folder."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from pipeline.errors import UserError
from pipeline.layout import Output, TrialFolder
from pipeline.tracking.describe import SWEEP, TRIAL
from pipeline.tracking.model_registry import BEST_MODEL, MODEL
from pipeline.tracking.store import open_store, sqlite_file
from pipeline.training.kept import Step, chosen, not_kept, open_step
from pipeline.training.model_file import TrainedModel, open_model

if TYPE_CHECKING:
    from mlflow import MlflowClient


def load_model(
    run_id: str,
    tracking_uri: str,
    device: torch.device | str = "cpu",
    *,
    step: Step = "last",
    output: str | Path | None = None,
    own_code: bool = False,
) -> TrainedModel:
    """The trained model of a finished trial, from MLflow; of any other step that is kept, from the trial's folder.

    >>> load_model("0123abcd", "sqlite:///runs/mlflow.db", step="best").predict(task)  # doctest: +SKIP

    Args:
        step: "last", "best" (of the checkpoints the one with the lowest held-out loss) or a step that was saved.
        output: the output folder in which the trial ran, for steps that MLflow does not have; by default the one that
            a SQLite store lies in.
        own_code: as in `open_model`.

    Raises:
        UserError: the store cannot be used, has no such run, or the run has no model of this step.
    """
    client = open_store(tracking_uri, create=False)
    ended: list[TrainedModel] = []
    problem: UserError | None = None
    try:
        ended = [
            model
            for name in (MODEL, BEST_MODEL)
            if (model := _logged(client, run_id, name, device, own_code)) is not None
        ]
    except UserError as error:  # a trial that has not finished has checkpoints all the same
        problem = error
    if (loaded := chosen(ended, step)) is not None:
        return loaded
    database = sqlite_file(tracking_uri)
    root = Path(output) if output is not None else database.parent if database else None
    folder = None if root is None or step == "last" else _folder(client, run_id, root)
    if folder is not None:
        return open_step(folder, step, device, own_code=own_code)
    steps = [model.step for model in ended if model.step is not None]
    raise problem or UserError(
        f"run {run_id}: {not_kept(step, steps)} MLflow has the last and the best; for another name the folder in which "
        "the trial ran: output=..."
    )


def _logged(
    client: "MlflowClient", run_id: str, name: str, device: torch.device | str, own_code: bool
) -> TrainedModel | None:
    """A model among the run's files; None where there is no best one, as where the last is the best."""
    from mlflow.exceptions import MlflowException

    with TemporaryDirectory() as aside:
        try:
            if name != MODEL and not any(file.path == name for file in client.list_artifacts(run_id)):
                return None
            folder = Path(client.download_artifacts(run_id, name, aside))
        except (MlflowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"run {run_id}: its model cannot be loaded ({reason}). Expected a finished trial; its id is in "
                "results.json of the report and in the address of its page."
            ) from None
        return open_model(folder, device, own_code=own_code)


def _folder(client: "MlflowClient", run_id: str, root: Path) -> TrialFolder | None:
    """The folder of the run's trial under `root`; None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_run(run_id).data.tags
    except MlflowException:
        return None
    known = [tags.get(SWEEP, ""), tags.get(TRIAL, "")]
    if not all(known) or any(part in ("", ".", "..") or "/" in part for part in known):
        return None
    folder = Output(root).trial(*known)
    return folder if folder.root.is_dir() else None
