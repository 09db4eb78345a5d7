"""The part of `pipeline.api` that loads models and uses them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.api_reports import local_store
from pipeline.errors import UserError
from pipeline.renamed import takes_old_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.data.model_use import Answers
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
    """Answers what is in a file with a run's model, as the run's task does: of ARC, two attempts at each test pair of
    the file's tasks, in any of the formats that `data.folder` takes; of text, a continuation of each of its lines.

    Args:
        run, step, own_code: as in `load_model`.
        submission: where to write the answers as JSON, which of ARC is the format of Kaggle's competitions; nowhere by
            default.

    Raises:
        UserError: there is no such model, its task answers no files, the file is malformed, or the answers cannot be
            written.
    """
    import json

    import torch

    from pipeline.files import write_whole

    device = "cuda" if torch.cuda.is_available() else "cpu"
    answers = _model_of(run, output, tracking_uri, step, device, own_code).answer(Path(file))
    try:
        text = json.dumps(answers.values)
    except (TypeError, ValueError) as error:
        raise UserError(f"the task's `answer` returned a value that JSON cannot hold ({error})") from error
    if submission is not None:
        try:
            write_whole(Path(submission), text)
        except OSError as error:
            raise UserError(f"--submission {submission}: cannot be written ({error})") from None
    return answers


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


@takes_old_names
def routing_map(
    model: "TrainedModel",
    given: Any,
    *options: Any,
    projection: str | None = None,
    title: str = "",
    **named: Any,
) -> "Figure":
    """The routing map of a row: its tokens as cells, each coloured by the expert that dominates there, layer by layer.

    Args:
        model: of `load_model`.
        given: the row, a `pipeline.tasks.Sequence`, or what the model's task makes a row of: of ARC a task as in
            `TrainedModel.predict`, and `pair=` the number of its test pair (of a Task its answer is shown, too); of
            text a string.
        projection: the experts of which module of each layer: of our transformer q, k, v or o, of another model the
            last word of a module's name. By default `o`, or the layer's last module where it has none.

    Returns:
        a matplotlib figure; `savefig` writes it.

    Raises:
        UserError: what is given is malformed, or longer than what the model was trained on.
    """
    from pipeline.data.contract import find_task
    from pipeline.drawing import own_style
    from pipeline.training.routing_map import map_routing, plot_map, row_of

    task, row = find_task(model.experiment.data.task), row_of(model, given, *options, **named)
    with own_style():
        return plot_map(map_routing(model.model, row, task, projection=projection, step=model.step), title)


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
