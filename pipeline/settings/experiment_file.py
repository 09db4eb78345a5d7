"""An experiment as a YAML file has it, refused whole if any trial or scale of it cannot be."""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.settings.config import Experiment, replace, validated
from pipeline.settings.trials import trials_of
from pipeline.settings.wrong_settings import did_you_mean
from pipeline.settings.yaml_file import read_yaml


def read_experiment(path: Path) -> Experiment:
    """The experiment in a YAML file, with every problem found named at once.

    Raises:
        UserError: names file, field, what was found and what was expected.
    """
    return validate_experiment(read_yaml(path), str(path))


def validate_experiment(values: dict[str, Any], source: str) -> Experiment:
    """`values` as an Experiment; `source` is named in the error."""
    experiment = validated(values, source)
    for each in (experiment, *(at_scale(experiment, scale, source) for scale in experiment.scales)):
        if each.sweep is not None:
            trials_of(each, source)
    return experiment


def at_scale(experiment: Experiment, scale: str, source: str) -> Experiment:
    """The experiment with the settings that its `scales` give this name, under a name of its own.

    Raises:
        UserError: it has no such scale, or cannot be so.
    """
    if scale not in experiment.scales:
        known = ", ".join(experiment.scales) or "none"
        raise UserError(f"{source}: has no scale {scale!r}{did_you_mean(scale, experiment.scales)}; there are: {known}")
    changes = {"name": f"{experiment.name}-{scale}", **experiment.scales[scale], "scales": {}}
    return replace(experiment, changes, f"{source}, scale {scale}")
