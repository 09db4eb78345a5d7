"""MLflow's model registry: one registered model for each arm of a sweep, one version a run."""

import re
import threading
from typing import TYPE_CHECKING

from pipeline.mlflow_private import is_no_registry
from pipeline.tracking.describe import ARM, SEED, SWEEP, SWEEP_ID, TRIAL
from pipeline.tracking.store import in_a_line

if TYPE_CHECKING:
    from pipeline.tracking.client import StoreClient

# The artifact folders of a run that hold its model, as it ended and at its best; see `pipeline.tracking.load_model`.
MODEL, BEST_MODEL = "model", "best_model"

_ONE_AFTER_ANOTHER = threading.Lock()  # MLflow numbers versions by trying, three times: two at once may both fail

# What a server answers that keeps no models, or lets this user register none.
_NO_REGISTRY = frozenset({"ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "NOT_IMPLEMENTED", "PERMISSION_DENIED"})


def model_name(sweep: str, arm: str) -> str:
    """What the model of an arm is called in the registry, where : and / are not allowed."""
    return re.sub(r"[:/]", ".", f"{sweep}-{arm}")


def register_model(client: "StoreClient", run_id: str) -> None:
    """Makes the artifact folder MODEL of a trial's run a version of its arm's model; once, however often it is called.

    Where there is no registry the run's tag `model_not_registered` says so, and the model is in the run all the same.

    Raises:
        MlflowException: the server did not answer.
    """
    from mlflow.exceptions import MlflowException

    run = client.get_run(run_id)
    tags = {name: run.data.tags.get(name, "") for name in (SWEEP, SWEEP_ID, ARM, SEED, TRIAL)}
    name = model_name(tags[SWEEP], tags[ARM])
    try:
        with _ONE_AFTER_ANOTHER:
            if client.search_model_versions(f"run_id = '{run_id}'"):
                _delete_twins(client, run_id, name)
                return
            sentence = f"The models of arm `{tags[ARM]}` in the sweep `{tags[SWEEP]}`, a version for each run."
            _create(client, name, sentence)
            source = f"{client.artifact_uri(run)}/{MODEL}"
            client.create_model_version(name, source, run_id, tags=tags, description=f"`{tags[TRIAL]}`")
            _delete_twins(client, run_id, name)
    except MlflowException as error:
        if error.error_code not in _NO_REGISTRY and not is_no_registry(error):
            raise
        client.set_tag(run_id, "model_not_registered", in_a_line(error))


def _delete_twins(client: "StoreClient", run_id: str, name: str) -> None:
    """A request for a version that was given up as lost may have been obeyed all the same: the first one stays.

    Versions that are not ours, which have no such tag, are left alone.
    """
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    ours = [version for version in versions if version.name == name and TRIAL in version.tags]
    for twin in sorted(ours, key=lambda version: int(version.version))[1:]:
        client.delete_model_version(name, twin.version)


def _create(client: "StoreClient", name: str, description: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
