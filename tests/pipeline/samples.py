"""Small experiments and data for the tests of training."""

from pathlib import Path

from pipeline.config import Experiment, validate_experiment
from pipeline.manifest import Prepared
from pipeline.shards import prepare

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
        "generate_tasks": 2,
    },
}


def small_experiment(**training: object) -> Experiment:
    """The experiment of the tests, with fields of its `training` section replaced."""
    return validate_experiment({**SMALL, "training": {**SMALL["training"], **training}}, "test")  # type: ignore[dict-item]


def small_data(root: Path) -> Prepared:
    """Its data, prepared."""
    return prepare(small_experiment().data, root)
