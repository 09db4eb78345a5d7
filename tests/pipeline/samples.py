"""Small experiments and data for the tests of training."""

from pathlib import Path

import yaml

from pipeline.data.manifest import Prepared
from pipeline.data.shards import prepare
from pipeline.settings.config import Experiment
from pipeline.settings.experiment_file import validate_experiment
from tests.pipeline.arc_samples import random_task, write_tasks

SMALL = {
    "name": "small",
    "data": {"max_tokens": 128, "dihedral_views": 2, "rows_per_group": 4},
    "model": {"hidden": 8, "layers": 2, "heads": 2},
    "training": {
        "steps": 8,
        "warmup_steps": 2,
        "batch_tokens": 512,
        "precision": "float64",
        "compile": "eager",  # what is compiled cannot have its shapes checked
        "log_every": 2,
        "evaluate_every": 4,
        "checkpoint_every": 2,
        "keep_checkpoints": 3,
        "prototype_snapshots": 2,
        "decode_tasks": 2,
    },
}


def small_experiment(**training: object) -> Experiment:
    """The experiment of the tests, with fields of its `training` section replaced."""
    return validate_experiment({**SMALL, "training": {**SMALL["training"], **training}}, "test")  # type: ignore[dict-item]


def write_config(folder: Path) -> Path:
    """A YAML file of two arms and one seed, on forty small tasks in a folder beside it."""
    write_tasks(folder / "tasks", [random_task(f"t{i:02d}", i) for i in range(40)])
    settings = {
        "name": "look",
        "data": {"dataset": "folder", "folder": str(folder / "tasks"), "max_tokens": 200, "dihedral_views": 2},
        "model": {"hidden": 8, "layers": 1, "heads": 2},
        "training": {"steps": 9, "warmup_steps": 1, "batch_tokens": 1000, "compile": "eager", "log_every": 2},
        "workers": {"cpus": 0.5, "timeout_s": 60},
        "sweep": {"arms": ["per_token", "task_only"], "seeds": [0]},
        "scales": {"deep": {"model.layers": 3}},
    }
    path = folder / "look.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def small_data(root: Path) -> Prepared:
    """Its data, prepared."""
    return prepare(small_experiment().data, root)
