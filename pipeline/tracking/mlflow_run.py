"""One MLflow run, created exactly once: its name and description, and the key by which a later command finds it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.records.delivery import DeliveryState, read_delivery, write_delivery

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STEPS, CONTINUED = "training.steps", "continued_to_steps"  # the param, which stays, and the tag that outdates it
GROWN = "grown"  # the tag: what a sweep has come to have more of since it was begun
_CREATION = "creation_key"  # tag and memory by which a run is known even if the answer to its creation was lost
_PARAMS_PER_CALL = 100  # MLflow's limit
_LONGEST_PARAM = 6000


@dataclass(frozen=True)
class DataInput:
    """The data set of a run. `profile` is JSON text."""

    name: str
    digest: str
    profile: str


@dataclass(frozen=True)
class Description:
    """A run's name, tags, params, config and data set, logged once at its start."""

    name: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    data: DataInput | None = None


def expect_run(path: Path) -> None:
    """Writes the key by which a run will be found, before the run exists, so that a later driver finds it, too."""
    if read_delivery(path) is None:
        write_delivery(path, DeliveryState())


def find_run(client: "MlflowClient", experiment_id: str, known: DeliveryState) -> "Run | None":
    """The run that is known, if this experiment of this store has it.

    A request to create it that was given up as lost may still have been obeyed, and late: of several the one whose id
    is known, or the oldest, is the run, and the others, which hold nothing, are deleted.
    """
    filter_string = f"tags.{_CREATION} = '{known.creation_key}'"
    runs = list(client.search_runs([experiment_id], filter_string, order_by=["attributes.start_time ASC"]))
    runs.sort(key=lambda run: run.info.run_id != known.run_id)
    for twin in runs[1:]:
        client.delete_run(twin.info.run_id)
    return runs[0] if runs else None


def begin_run(
    client: "MlflowClient", experiment_id: str, known: DeliveryState, description: Description, existing: "Run | None"
) -> str:
    """The id of `existing`, which is of `find_run`, set to RUNNING, or of a new run; described either way.

    A kill or a lost answer at any point leads neither to a second run nor to half a description, where `known` is in
    its file already, and gets the id when this returns.
    """
    if existing is None:
        tags = {**description.tags, _CREATION: known.creation_key}
        run_id = str(client.create_run(experiment_id, tags=tags, run_name=description.name).info.run_id)
    else:
        run_id = str(existing.info.run_id)
        client.update_run(run_id, status="RUNNING")
        _note_new_commit(client, existing, description)
        _note_growth(client, existing, description)
    if known.run_id != run_id:
        _describe(client, run_id, description)
    return run_id


def flat_params(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings under dotted names, as text; what is None is left out."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flat_params(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = (value if isinstance(value, str) else json.dumps(value))[:_LONGEST_PARAM]
    return flat


def _describe(client: "MlflowClient", run_id: str, description: Description) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    params = [Param(name, value) for name, value in description.params.items()]
    for start in range(0, len(params), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_CALL])
    if description.config:
        client.log_dict(run_id, description.config, "config.json")
    if description.data is not None:
        data = description.data
        source = json.dumps({"name": data.name})
        entity = Dataset(data.name, data.digest, source_type="local", source=source, profile=data.profile)
        client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])


def _note_growth(client: "MlflowClient", run: "Run", description: Description) -> None:
    """A param cannot change: that the run goes on for more steps, or its sweep has grown, stands in tags."""
    tags, then = {}, run.data.params.get(STEPS)
    now = description.params.get(STEPS, then)
    if then is not None and now is not None and now != run.data.tags.get(CONTINUED, then):
        tags[CONTINUED] = now
    if description.tags.get(GROWN, "") != run.data.tags.get(GROWN, ""):
        tags[GROWN] = description.tags.get(GROWN, "")
    for name, value in tags.items():
        client.set_tag(run.info.run_id, name, value)
    if tags and description.config:
        client.log_dict(run.info.run_id, description.config, "config.json")


def _note_new_commit(client: "MlflowClient", run: "Run", description: Description) -> None:
    name = "mlflow.source.git.commit"
    now, then = description.tags.get(name), run.data.tags.get(name)
    if now != then:
        client.set_tag(run.info.run_id, "resumed_at_git_commit", now)
