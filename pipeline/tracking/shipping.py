"""Sends what a trial's folder holds to its MLflow run: each point and each figure once, in order."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.mlflow_private import image_steps
from pipeline.records.attempts import noted_attempts
from pipeline.records.memories import shipped_memory
from pipeline.records.pruned import pruned_at
from pipeline.records.result import read_result
from pipeline.records.spool import DamagedSpool, Line, read_spool, spool_lines
from pipeline.tracking.describe import ENVIRONMENT, PRUNED, RESUMED_WORKERS, USER_CODE
from pipeline.tracking.images import FIGURE, drawings, last_drawings
from pipeline.tracking.mlflow_run import read_memory, write_memory
from pipeline.tracking.model_registry import BEST_MODEL, MODEL, register_model

if TYPE_CHECKING:
    from pipeline.tracking.client import StoreClient

_READ_BYTES = 2**24  # of the spool, taken into memory together
_POINTS_PER_CALL = 1000  # MLflow's limit
_LARGEST = 1.7976931348623157e308


def ship_metrics(client: "StoreClient", run_id: str, folder: TrialFolder, unsure: bool, recount: bool = False) -> int:
    """Sends the spool's new lines; returns the number of points sent.

    `unsure` says that the last points may have arrived without our remembering it: then what the run has is asked for
    and not sent again. `recount` says that points may be missing that we remember having sent: all that the run does
    not have is sent. NaN is sent as NaN, so that a diverged run does not show its last good value; an infinity as the
    largest float, which is what MLflow keeps.

    Raises:
        DamagedSpool: after all has been sent that comes before the damage.
    """
    memory = shipped(folder, run_id)
    there: dict[str, set[int]] = {}
    sent, offset = 0, 0 if recount else memory["offset"]
    while True:
        damage = None
        try:
            lines, _ = read_spool(folder.spool, offset, _READ_BYTES)
        except DamagedSpool as error:
            lines, damage = error.before, error
        more, unsure = _ship_lines(client, run_id, folder, memory, lines, there, unsure, recount)
        sent += more
        if damage is not None:
            raise damage
        if not lines or lines[-1].end - offset < _READ_BYTES:  # that was all
            return sent
        offset = lines[-1].end


def _ship_lines(
    client: "StoreClient",
    run_id: str,
    folder: TrialFolder,
    memory: dict[str, Any],
    lines: list[Line],
    there: dict[str, set[int]],
    unsure: bool,
    recount: bool,
) -> tuple[int, bool]:
    """Sends the lines and notes it in `memory`; the number of points, and whether it is still unsure what arrived."""
    sent = 0
    for group in _groups(lines):
        points = [(name, value, line) for line in group for name, value in line.metrics.items()]
        if unsure or recount:
            for name in {name for name, _, _ in points} - there.keys():
                there[name] = _steps(client, run_id, name)
            points = [(name, value, line) for name, value, line in points if line.step not in there[name]]
            unsure = not points  # they are sent in order: after one that is missing, all are
        _send(client, run_id, points)
        sent += len(points)
        memory["offset"] = max(memory["offset"], group[-1].end)
        write_memory(folder.shipped, memory)
    return sent, unsure


def ship_figures(client: "StoreClient", run_id: str, folder: TrialFolder, unsure: bool, recount: bool = False) -> int:
    """Draws and sends new images, each as a step of its kind; returns how many. Else as `ship_metrics`."""
    memory = shipped(folder, run_id)
    known = {*memory["figures"]}
    new = [each for each in drawings(folder) if recount or each.name not in known]
    there: dict[str, set[int]] = {}
    for each in new:
        if (unsure or recount) and each.key not in there:
            there[each.key] = _image_steps(client, run_id, each.key)
        if each.step not in there.get(each.key, ()):
            try:
                client.log_image(run_id, each.render(), key=each.key, step=each.step)
            except UserError as error:  # a damaged snapshot must not end a sweep
                client.set_tag(run_id, "unreadable_snapshot", str(error))
        memory["figures"] = [*dict.fromkeys([*memory["figures"], each.name])]
        write_memory(folder.shipped, memory)
    return len(new)


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
    if told := ", ".join(filter(None, codes)):
        client.set_tag(run_id, USER_CODE, told)
    for name, value in read_result(folder).environment.items():
        client.set_tag(run_id, f"{ENVIRONMENT}.{name}", value)
    if folder.result.exists() and folder.model.is_dir():
        client.log_artifacts(run_id, str(folder.model), MODEL)
        if folder.best_model.is_dir():
            client.log_artifacts(run_id, str(folder.best_model), BEST_MODEL)
        register_model(client, run_id)
    for key, last in last_drawings(folder).items():
        name = f"{FIGURE}.png" if key == FIGURE else f"{folder.figures.name}/{key}.png"
        try:
            client.log_image(run_id, last.render(), artifact_file=name)
        except UserError as error:
            client.set_tag(run_id, "unreadable_snapshot", str(error))


def has_all(folder: TrialFolder, run_id: str, status: str) -> bool:
    """Whether the run has all that the folder now holds, and has been ended as `status` since."""
    memory = shipped(folder, run_id)
    if memory["ended"] != status or not {each.name for each in drawings(folder)} <= set(memory["figures"]):
        return False
    try:
        return not read_spool(folder.spool, memory["offset"], 1)[0]
    except DamagedSpool:
        return False


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
    for each in drawings(folder):
        drawn.setdefault(each.key, set()).add(each.step)
    return any(not there <= _image_steps(client, run_id, key) for key, there in drawn.items())


def shipped(folder: TrialFolder, run_id: str) -> dict[str, Any]:
    """What the run has of the folder: `offset` in the spool, `figures`, and `ended`, its final status or None."""
    memory = read_memory(folder.shipped, shipped_memory)
    if memory.get("run_id") != run_id:
        return {"run_id": run_id, "offset": 0, "figures": [], "ended": None}
    return memory


def _send(client: "StoreClient", run_id: str, points: list[tuple[str, float, Line]]) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(name, value if math.isnan(value) else max(-_LARGEST, min(_LARGEST, value)), line.time_ms, line.step)
        for name, value, line in points
    ]
    for start in range(0, len(metrics), _POINTS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _POINTS_PER_CALL])


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
