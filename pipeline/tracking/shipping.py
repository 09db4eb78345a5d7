"""Sends what a trial's folder holds to its MLflow run: each point and each figure once, in order."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.mlflow_private import image_steps
from pipeline.records.attempts import noted_attempts
from pipeline.records.delivery import DeliveryState
from pipeline.records.pruned import pruned_at
from pipeline.records.result import read_result
from pipeline.records.spool import DamagedSpool, Line, SpoolReader, spool_lines
from pipeline.tracking.describe import ENVIRONMENT, PRUNED, RESUMED_WORKERS, USER_CODE
from pipeline.tracking.images import FIGURE, last_images, run_images
from pipeline.tracking.model_registry import BEST_MODEL, MODEL, register_model

if TYPE_CHECKING:
    from pipeline.tracking.client import StoreClient
    from pipeline.tracking.delivery import Delivery

_READ_BYTES = 2**24  # of the spool, taken into memory together
_POINTS_PER_CALL = 1000  # MLflow's limit
_LARGEST = 1.7976931348623157e308


def ship_metrics(client: "StoreClient", run: "Delivery", folder: TrialFolder) -> None:
    """Sends the spool's new lines; counts the points in `run.sent`, and notes how far it has come after each call.

    Where `run.unsure`, the last points may have arrived without our noting it: then what the run has is asked for and
    not sent again. With `run.recount` points may be missing that were noted: all that the run does not have is sent.
    NaN is sent as NaN, so that a diverged run does not show its last good value; an infinity as the largest float,
    which is what MLflow keeps.

    Raises:
        DamagedSpool: after all has been sent that comes before the damage.
    """
    from mlflow.entities import Metric

    there: dict[str, set[int]] = {}
    spool = SpoolReader(folder.spool, 0 if run.recount else run.state.offset)
    unsure = run.unsure
    while lines := spool.read(_READ_BYTES):
        for group in _groups(lines):
            points = [(name, value, line) for line in group for name, value in line.metrics.items()]
            if unsure or run.recount:
                for name in {name for name, _, _ in points} - there.keys():
                    there[name] = _steps(client, run.run_id, name)
                points = [(name, value, line) for name, value, line in points if line.step not in there[name]]
                unsure = not points  # they are sent in order: after one that is missing, all are
            metrics = [Metric(name, _sendable(value), line.time_ms, line.step) for name, value, line in points]
            for start in range(0, len(metrics), _POINTS_PER_CALL):
                client.log_batch(run.run_id, metrics=metrics[start : start + _POINTS_PER_CALL])
            run.sent += len(points)
            run.note(offset=max(run.state.offset, group[-1].end))
    if spool.damage is not None:
        raise spool.damage


def ship_figures(client: "StoreClient", run: "Delivery", folder: TrialFolder) -> None:
    """Draws and sends new images, each as a step of its kind. Else as `ship_metrics`."""
    known = {*run.state.figures}
    there: dict[str, set[int]] = {}
    for each in run_images(folder):
        if each.name in known and not run.recount:
            continue
        if (run.unsure or run.recount) and each.key not in there:
            there[each.key] = _image_steps(client, run.run_id, each.key)
        if each.step not in there.get(each.key, ()):
            try:
                client.log_image(run.run_id, each.render(), key=each.key, step=each.step)
            except UserError as error:  # a damaged snapshot must not end a sweep
                client.set_tag(run.run_id, "unreadable_snapshot", str(error))
        run.note(figures=[*dict.fromkeys([*run.state.figures, each.name])])


def ship_files(client: "StoreClient", run_id: str, folder: TrialFolder) -> None:
    """Files what a trial leaves at its end: result, predictions, distributions, model, reason of failure, and the last
    prototype distribution; the environment as tags."""
    for path in (folder.result, folder.predictions, folder.one_file_of_distributions, folder.failure):
        if path.exists():
            client.log_artifact(run_id, str(path))
    if folder.distributions.is_dir():
        client.log_artifacts(run_id, str(folder.distributions), folder.distributions.name)
    step = pruned_at(folder)
    if step is not None:
        client.set_tag(run_id, PRUNED, str(step))
    noted = [str(each["workers"]) for each in noted_attempts(folder) if type(each.get("workers")) is int]
    counts = [each for each, before in zip(noted, [None, *noted], strict=False) if each != before]
    if len(counts) > 1:
        client.set_tag(run_id, RESUMED_WORKERS, ", then ".join(counts))
    codes = dict.fromkeys(str(each.get("user_code", "")) for each in noted_attempts(folder))
    if digests := ", ".join(filter(None, codes)):
        client.set_tag(run_id, USER_CODE, digests)
    for name, value in read_result(folder).environment.items():
        client.set_tag(run_id, f"{ENVIRONMENT}.{name}", value)
    if folder.result.exists() and folder.model.is_dir():
        client.log_artifacts(run_id, str(folder.model), MODEL)
        if folder.best_model.is_dir():
            client.log_artifacts(run_id, str(folder.best_model), BEST_MODEL)
        register_model(client, run_id)
    for key, last in last_images(folder).items():
        name = f"{FIGURE}.png" if key == FIGURE else f"{folder.figures.name}/{key}.png"
        try:
            client.log_image(run_id, last.render(), artifact_file=name)
        except UserError as error:
            client.set_tag(run_id, "unreadable_snapshot", str(error))


def has_all(folder: TrialFolder, state: DeliveryState, status: str) -> bool:
    """Whether the run has all that the folder now holds, and has been ended as `status` since."""
    if state.ended != status or not {each.name for each in run_images(folder)} <= {*state.figures}:
        return False
    spool = SpoolReader(folder.spool, state.offset)
    return not spool.read(1) and spool.damage is None


def lacks(client: "StoreClient", run_id: str, folder: TrialFolder) -> bool:
    """Whether the store has less of the run than the folder holds, by counting: points, and steps of the figure."""
    steps: dict[str, set[int]] = {}
    try:
        for line in spool_lines(folder.spool):
            for name in line.metrics:
                steps.setdefault(name, set()).add(line.step)
    except DamagedSpool:
        return True
    if any(not there <= _steps(client, run_id, name) for name, there in steps.items()):
        return True
    drawn: dict[str, set[int]] = {}
    for each in run_images(folder):
        drawn.setdefault(each.key, set()).add(each.step)
    return any(not there <= _image_steps(client, run_id, key) for key, there in drawn.items())


def _sendable(value: float) -> float:
    return value if math.isnan(value) else max(-_LARGEST, min(_LARGEST, value))


def _groups(lines: list[Line]) -> Iterator[list[Line]]:
    """Whole lines that fit one call; a line that is too long for that goes alone."""
    group: list[Line] = []
    for line in lines:
        if group and sum(len(other.metrics) for other in group) + len(line.metrics) > _POINTS_PER_CALL:
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _steps(client: "StoreClient", run_id: str, name: str) -> set[int]:
    return {point.step for point in client.get_metric_history(run_id, name)}


def _image_steps(client: "StoreClient", run_id: str, key: str) -> set[int]:
    return image_steps([file.path for file in client.list_artifacts(run_id, "images")], key)
