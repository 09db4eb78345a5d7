"""How the runs of a sweep are named, tagged and described in MLflow."""

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.colours import arm_colour
from pipeline.renamed import current_setting
from pipeline.settings.built_in_tasks import not_of
from pipeline.settings.config import BEFORE, Experiment
from pipeline.settings.trials import Trial
from pipeline.tracking.mlflow_run import CONTINUED, GROWN, STEPS, DataInput, Description, flat_params

if TYPE_CHECKING:
    from mlflow.entities import Run

SWEEP, ROLE, ARM, SEED, TRIAL = "sweep", "role", "arm", "seed", "trial"  # the tags by which runs are found
SWEEP_ID = "sweep_id"  # the tag that distinguishes sweeps with one name; older sweeps have none
USER_CODE = "user_code"  # the tag: the digest of the user's own code; of several, in the order of the attempts
RESUMED_WORKERS = "resumed_workers"  # the tag: of a trial that was resumed with another, all workers.count in order
COMMIT_SENT = "TINY_ONN_GIT_COMMIT"
PRUNED = "pruned_at_step"  # the tag of a run that was ended early, and so is in no comparison
DAMAGED = "metrics_damaged"  # the tag, with the reason, of a run whose last values are not its trial's
ENVIRONMENT = "environment"  # and the tags environment.<what>, which say what a run's workers ran on


def describe_trial(trial: Trial, sweep: str, extra: dict[str, str]) -> Description:
    """A trial's run. `data_name`, `data_hash`, `data_counts` (JSON) of `extra` say the data set; others are tags."""
    experiment = trial.experiment
    training = experiment.training
    arm, seed = training.arm, str(training.seed)
    data_hash = extra.get("data_hash", "")
    tags = {
        SWEEP: sweep,
        ROLE: "trial",
        ARM: arm,
        SEED: seed,
        TRIAL: trial.key,
        "mlflow.runColor": arm_colour(arm),
        "mlflow.source.git.commit": extra.get("mlflow.source.git.commit") or git_commit(),
        "mlflow.source.name": "tiny-onn",
        "mlflow.note.content": _trial_note(experiment, sweep),
        **{name: value for name, value in extra.items() if not name.startswith("data_")},
    }
    params = {ARM: arm, SEED: seed, **flat_params(_settings(experiment, {"sweep"}))}
    if data_hash:
        params["data_hash"] = data_hash
    data = None
    if "data_name" in extra:
        data = DataInput(extra["data_name"], data_hash[:8] or "unknown", extra.get("data_counts", "{}"))
    return Description(_trial_name(trial), tags, params, experiment.model_dump(mode="json"), data)


def params_of(run: "Run") -> dict[str, str]:
    """A run's settings: its params, with the number of steps to which it was continued."""
    params = {current_setting(name): value for name, value in run.data.params.items()}
    if STEPS in params:
        params[STEPS] = run.data.tags.get(CONTINUED, params[STEPS])
        for name, value in BEFORE.items():  # of runs from before there was another
            params.setdefault(name, str(value))
    return params


def describe_summary(experiment: Experiment, sweep_id: str | None = None, grown: str = "") -> Description:
    """The one run of a sweep that holds its report; `grown` is what the sweep has come to have more of."""
    tags = {
        **({SWEEP_ID: sweep_id} if sweep_id else {}),
        **({GROWN: grown} if grown else {}),
        SWEEP: experiment.name,
        ROLE: "summary",
        "mlflow.runColor": "#222222",
        "mlflow.source.git.commit": git_commit(),
        "mlflow.source.name": "tiny-onn",
        "mlflow.note.content": f"**Summary of the sweep `{experiment.name}`**\n\n{experiment.description}\n\n"
        f"{_study_note(experiment)}The report follows when the sweep ends.",
    }
    settings = _settings(experiment, {"scales"})
    return Description(f"{experiment.name} · summary", tags, flat_params(settings), settings)


def _settings(experiment: Experiment, without: set[str]) -> dict[str, Any]:
    """The settings that are in use: those that only another task reads are left out."""
    settings = experiment.model_dump(mode="json", exclude=without)
    for name in not_of(experiment.data.task):
        group, _, field = name.partition(".")
        del settings[group][field]
    return settings


def _study_note(experiment: Experiment) -> str:
    if experiment.study is None:
        return ""
    study_items = experiment.study.model_dump().items()
    return "".join(f"*{name.replace('_', ' ')}*: {text}\n\n" for name, text in study_items if text)


def git_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the code that runs, with `-dirty` when files differ from it; "unknown" without git.

    A job on a cluster has code without git; its environment names the commit.
    """
    if COMMIT_SENT in os.environ:
        return os.environ[COMMIT_SENT]
    # In a git hook GIT_DIR is set, and would have git answer for another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 5, "check": True, "env": environment}
    try:
        outputs = [
            subprocess.run(["git", "-C", str(folder), *words], **options)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return outputs[0].stdout.strip() + ("-dirty" if outputs[1].stdout.strip() else "")


def _trial_name(trial: Trial) -> str:
    training = trial.experiment.training
    head = f"s{training.seed}"
    _, separator, cell = trial.key.partition(f"-{head}-")
    arm = training.arm.rpartition(":")[2]
    return " · ".join([arm, head, *([cell.replace("_", " ")] if separator else [])])


def _trial_note(experiment: Experiment, sweep: str) -> str:
    training, model = experiment.training, experiment.model
    facts = {
        "sweep": sweep,
        "arm": training.arm,
        "seed": training.seed,
        "task": experiment.data.task,
        **({"built by": model.build} if model.build else {}),
        "model": f"hidden {model.hidden}, {model.layers} layers, {model.heads} heads",
        "training": f"{training.steps} steps of {training.batch_tokens} tokens, {experiment.workers.count} worker(s)",
    }
    table = "\n".join(f"| {name} | {json.dumps(value).strip(chr(34))} |" for name, value in facts.items())
    return f"{experiment.description}\n\n| | |\n| --- | --- |\n{table}\n"
