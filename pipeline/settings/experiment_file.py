"""An experiment as a YAML file has it, refused whole if any trial or scale of it cannot be."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.renamed import current_setting, current_settings
from pipeline.settings.config import Experiment, replace, validated
from pipeline.settings.trials import Trial, every_trial
from pipeline.settings.wrong_settings import did_you_mean, setting_names, together, unknown_varied, why_no_setting
from pipeline.settings.yaml_file import read_yaml


def read_experiment(path: Path) -> Experiment:
    """The experiment in a YAML file, with every problem found named at once.

    Raises:
        UserError: names file, field, what was found and what was expected.
    """
    return validate_experiment(current_settings(read_yaml(path), str(path)), str(path))


def validate_experiment(values: dict[str, Any], source: str) -> Experiment:
    """`values`, which may be of an older version, as an Experiment; `source` is named in the error."""
    return _expanded(values, source)[None].experiment


@dataclass(frozen=True)
class Expanded:
    """An experiment and its trials, which are expanded once. `source` is named in the error where they cannot be."""

    experiment: Experiment
    source: str

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Those of its sweep, or its one trial."""
        return every_trial(self.experiment, self.source)


def _expanded(values: dict[str, Any], source: str) -> dict[str | None, Expanded]:
    """The experiment of a file, by None, and at each of its scales, by the scale's name."""
    values = current_settings(values)
    experiment = validated(values, source)
    if unknown := unknown_varied(values, setting_names(Experiment)):
        raise UserError(together(source, unknown))
    scales = {scale: at_scale(experiment, scale, source) for scale in experiment.scales}
    by_scale = {name: Expanded(each, source) for name, each in ((None, experiment), *scales.items())}
    for each in by_scale.values():
        if each.experiment.sweep is not None:
            _ = each.trials  # refused here if one cannot be
    return by_scale


def read_changed(path: Path, changes: Mapping[str, Any], scale: str | None, source: str) -> Expanded:
    """The experiment in a YAML file, at one of its scales and with settings replaced, and its trials; `source` is the
    file as it was named.

    Raises:
        UserError: as `read_experiment`; where the file and the changes both name settings that there are not, all of
            them.
    """
    try:
        by_scale = _expanded(current_settings(read_yaml(path), str(path)), str(path))
    except UserError as error:
        names = setting_names(Experiment)
        unknown = [f"{field!r} {why_no_setting(field, names)}" for field in changes if not _has_place(field, names)]
        raise UserError("\n".join([str(error), *([together("--set", unknown)] if unknown else [])])) from error
    if scale not in by_scale:
        at_scale(by_scale[None].experiment, str(scale), source)  # says which there are
    if not changes:
        return by_scale[scale]
    return Expanded(replace(by_scale[scale].experiment, dict(changes), f"{source} with --set"), source)


def _has_place(field: str, names: Collection[str]) -> bool:
    """Whether there is such a setting, or may be one: a key of one's own, as in `scales`, is seen when it is set."""
    return current_setting(field) in names or field.startswith("scales.")


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
