"""What a report shows of the files that trials have left in MLflow: distributions, examples and figures."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.colours import GRID_COLOURS
from pipeline.errors import UserError
from pipeline.escaping import shown
from pipeline.files import read_json
from pipeline.foreign_json import MOST_BYTES, DamagedJson, parse_json, read_bounded
from pipeline.records.phases import SweepPhases, parse_phases
from pipeline.renamed import current_settings
from pipeline.reporting.results import Results
from pipeline.settings.config import Experiment, validated
from pipeline.tracking.store import open_store, plain, store_errors
from pipeline.training.distributions import FOLDER, Distributions, last_distributions, last_piece

if TYPE_CHECKING:
    from mlflow import MlflowClient

Grid = list[list[int]]
PHASES_FILE = "phases.json"
FIGURES = "figures"  # the folder of a run's last figures, of its routing maps and its observer
_MOST_FIGURES, _LARGEST_FIGURE = 64, 2**22  # of a run; bytes
_LONGEST_TEXT = 4000  # characters of an example
_LARGEST_SIDE = 30  # cells of an example's grid


@dataclass(frozen=True)
class Drawn:
    """A part of a held-out item as a grid, and the grid that a model predicted: None where it predicted none."""

    task_id: str
    pair: int
    input: Grid
    target: Grid
    prediction: Grid | None


@dataclass(frozen=True)
class GeneratedText:
    """What a model generated after the first part of a held-out row, and the rest of that row."""

    task_id: str
    pair: int
    given: str
    predicted: str
    target: str


@dataclass
class Artifacts:
    """By run id; a run that left no such file, or a damaged one, is not in it. `lost` are the runs of which there is no
    file at all, though every run is given some. `sweep`: the settings of the sweep itself, None where they are not of
    today's version. `phases`: where the wall time of its last command went."""

    distributions: dict[str, Distributions] = field(default_factory=dict)
    predictions: dict[str, list[Drawn]] = field(default_factory=dict)
    texts: dict[str, list[GeneratedText]] = field(default_factory=dict)
    figures: dict[str, dict[str, bytes]] = field(default_factory=dict)  # PNG by name
    lost: list[str] = field(default_factory=list)
    sweep: Experiment | None = None
    phases: SweepPhases | None = None


def read_artifacts(uri: str, results: Results, phases: Path | None = None) -> Artifacts:
    """The distributions of every trial, and of each row's lowest seed the predictions and the figures.

    Args:
        phases: phases.json in the sweep's own folder, which is newer than the one in MLflow.
    """
    client = open_store(uri, create=False)
    filed = Artifacts()
    with TemporaryDirectory() as aside, store_errors(uri):
        if phases is not None and phases.is_file():
            filed.phases = parse_phases(read_json(phases))
        elif results.summary is not None:
            filed.phases = _phases(_text(client, results.summary, PHASES_FILE, aside))
        if results.summary is not None:
            filed.sweep = _settings(_text(client, results.summary, "config.json", aside))
        for row in results.rows:
            for seed, trial in sorted(row.trials.items()):
                there = {file.path for file in client.list_artifacts(trial.run_id)}
                if not there:
                    filed.lost.append(trial.run_id)
                if (name := _file_of_distributions(client, trial.run_id, there)) is not None:
                    text = _text(client, trial.run_id, name, aside)
                    if (parsed := _distributions(text)) is not None:
                        filed.distributions[trial.run_id] = parsed
                if FIGURES in there and seed == min(row.trials):
                    filed.figures[trial.run_id] = _figures(client, trial.run_id, aside)
                if "predictions.json" in there and seed == min(row.trials):
                    text = _text(client, trial.run_id, "predictions.json", aside)
                    filed.predictions[trial.run_id], filed.texts[trial.run_id] = _drawn(text), _texts(text)
    return filed


def _text(client: "MlflowClient", run_id: str, name: str, aside: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return read_bounded(Path(client.download_artifacts(run_id, name, aside)), MOST_BYTES).decode("utf-8")
    except (MlflowException, OSError, ValueError, DamagedJson):  # a report is made of what there is
        return ""


def _phases(text: str) -> SweepPhases | None:
    try:
        return parse_phases(parse_json(text, PHASES_FILE)) if text else None
    except DamagedJson:
        return None


def _settings(text: str) -> Experiment | None:
    try:
        values = parse_json(text, "config.json")
        return validated(current_settings(values), "config.json") if isinstance(values, dict) else None
    except (DamagedJson, UserError):
        return None


def _figures(client: "MlflowClient", run_id: str, aside: str) -> dict[str, bytes]:
    """The run's last figure of each kind. They go into the page as they are: what is no PNG, or large, is left out."""
    from mlflow.exceptions import MlflowException

    pictures: dict[str, bytes] = {}
    for file in client.list_artifacts(run_id, FIGURES)[:_MOST_FIGURES]:
        name = file.path.rpartition("/")[2]
        if not name.endswith(".png"):
            continue
        try:
            path = Path(client.download_artifacts(run_id, file.path, aside))
            data = path.read_bytes() if path.stat().st_size <= _LARGEST_FIGURE else b""
        except (MlflowException, OSError):
            continue
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            pictures[plain(name.removesuffix(".png"))] = data
    return pictures


def _file_of_distributions(client: "MlflowClient", run_id: str, there: set[str]) -> str | None:
    """The file that has the last step: the last piece, or the one file of before there were pieces."""
    if FOLDER in there:
        names = {file.path.rpartition("/")[2] for file in client.list_artifacts(run_id, FOLDER)}
        if (last := last_piece(names)) is not None:
            return f"{FOLDER}/{last}"
    return "distributions.json" if "distributions.json" in there else None


def _distributions(text: str) -> Distributions | None:
    try:
        return last_distributions(text)
    except ValueError:
        return None


def _drawn(text: str) -> list[Drawn]:
    """What is well-formed in the file: the page draws from it, so nothing in it is trusted."""
    try:
        values = parse_json(text, "predictions.json")
    except DamagedJson:
        return []
    return [drawn for value in values if (drawn := _one(value)) is not None] if isinstance(values, list) else []


def _texts(text: str) -> list[GeneratedText]:
    """The texts that are well-formed in the file; control characters are escaped."""
    try:
        values = parse_json(text, "predictions.json")
    except DamagedJson:
        return []
    return [entry for value in values if (entry := _one_text(value)) is not None] if isinstance(values, list) else []


def _one_text(value: Any) -> GeneratedText | None:
    parts = ("task_id", "given", "predicted", "target")
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in parts):
        return None
    if type(value.get("pair")) is not int:
        return None
    name, *texts = (shown(value[each][:_LONGEST_TEXT], keep="\n") for each in parts)
    return GeneratedText(name, value["pair"], *texts)


def _one(value: Any) -> Drawn | None:
    if not isinstance(value, dict) or type(value.get("pair")) is not int or "prediction" not in value:
        return None
    grids = [_grid(value.get(name)) for name in ("input", "target", "prediction")]
    if None in grids[:2] or (grids[2] is None and value["prediction"] is not None):
        return None
    given, target, prediction = grids
    assert given is not None
    assert target is not None
    return Drawn(plain(str(value.get("task_id"))), value["pair"], given, target, prediction)


def _grid(value: Any) -> Grid | None:
    """The value, if it is a list of equally long lists of the colours 0 to 9; None otherwise."""
    if not isinstance(value, list) or not 0 < len(value) <= _LARGEST_SIDE:
        return None
    if not all(isinstance(line, list) and 0 < len(line) <= _LARGEST_SIDE for line in value):
        return None
    same = {len(line) for line in value} == {len(value[0])}
    cells = all(type(cell) is int and 0 <= cell < len(GRID_COLOURS) for line in value for cell in line)
    return value if same and cells else None
