"""The one call that gives a run's model back from MLflow."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pipeline.errors import UserError
from pipeline.tracking.registry import MODEL
from pipeline.tracking.store import open_store
from pipeline.training.model_file import TrainedModel, open_model


def load_model(run_id: str, tracking_uri: str, device: torch.device | str = "cpu") -> TrainedModel:
    """The trained model of a finished trial, from MLflow alone.

    >>> load_model("0123abcd", "sqlite:///runs/mlflow.db").predict(task)  # doctest: +SKIP

    Raises:
        UserError: the store cannot be used, has no such run, or the run has no model.
    """
    client = open_store(tracking_uri, create=False)
    from mlflow.exceptions import MlflowException

    with TemporaryDirectory() as aside:
        try:
            folder = Path(client.download_artifacts(run_id, MODEL, aside))
        except (MlflowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"run {run_id}: has no model that can be had ({reason}). Expected a finished trial; its id is in "
                "results.json of the report and in the address of its page."
            ) from None
        return open_model(folder, device)
