"""The part of `pipeline.api` that loads models and uses them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.api_reports import local_store
from pipeline.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.training.answers import Answers
    from pipeline.training.kept import Step
    from pipeline.training.model_file import TrainedModel


def predict(
    run: str | Path,
    file: str | Path,
    submission: str | Path | None = None,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    step: "Step" = "last",
    own_code: bool = False,
) -> "Answers":
    """Draws two attempts at each test pair of the tasks in a file, in any of the formats that `data.folder` takes.

    Args:
        run, step, own_code: as in `load_model`.
        submission: where to write them in the format of Kaggle's ARC competitions; nowhere by default.

    Raises:
        UserError: there is no such model or task, or the submission cannot be written.
    """
    import torch

    from pipeline.training.answers import answer_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model_of(run, output, tracking_uri, step, device, own_code)
    return answer_file(model, Path(file), None if submission is None else Path(submission))


def load_model(
    run: str | Path,
    output: str | Path = "runs",
    *,
    tracking_uri: str | None = None,
    step: "Step" = "last",
    device: str = "cpu",
    own_code: bool = False,
) -> "TrainedModel":
    """The model of a run: as it ended, at its best by held-out loss, or at any step whose checkpoint is kept.

    Args:
        run: the id of a finished run in MLflow; or the path of a trial's folder, or of a model's.
        output: where the run's checkpoints lie, for steps that MLflow does not have.
        step: "last", "best", or a number.
        own_code: of a model that names code, `model.build`, a task, an arm or a part of your own: import it, and so run
            it. Whoever can write to the store or the folder chooses what is named.

    Raises:
        UserError: there is no such run, or no model of this step; names the steps that there are. Or the model names
            code, and `own_code` is not set.
    """
    return _model_of(run, output, tracking_uri, step, device, own_code)


def routing_map(model: "TrainedModel", task: Any, pair: int = 0, *, projection: str = "o", title: str = "") -> "Figure":
    """The routing map of an ARC task: its grids, each cell coloured by the expert that dominates there, by layer.

    Args:
        model: of `load_model`.
        task: as in `TrainedModel.predict`; of a Task the answer of the test pair is shown, too.
        pair: the test pair that follows the demonstrations.
        projection: q, k, v or o: the experts of which module of each layer.

    Returns:
        a matplotlib figure; `savefig` writes it.

    Raises:
        UserError: the task is malformed, has no such pair or is longer than those that the model was trained on.
    """
    from pipeline.drawing import own_style
    from pipeline.training.routing_map import map_routing, plot_map, sequence_of

    routing = map_routing(model.model, sequence_of(model, task, pair), projection=projection, step=model.step)
    with own_style():
        return plot_map(routing, title)


def _model_of(
    run: str | Path, output: str | Path, tracking_uri: str | None, step: "Step", device: str, own_code: bool
) -> "TrainedModel":
    from pipeline.layout import TrialFolder
    from pipeline.tracking.load_model import load_model as load_logged
    from pipeline.training.kept import open_step
    from pipeline.training.model_file import is_model, open_model

    if not Path(run).is_dir():
        uri = tracking_uri or local_store(Path(output), f"run {run}")
        return load_logged(str(run), uri, device, step=step, output=output, own_code=own_code)
    if not is_model(Path(run)):
        return open_step(TrialFolder(Path(run)), step, device, own_code=own_code)
    if step != "last":
        raise UserError(f"RUN {run}: is the folder of one model. Expected a run's id or a trial's folder with a step.")
    return open_model(Path(run), device, own_code=own_code)
