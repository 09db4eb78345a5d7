"""Settings replaced by their dotted names, or a group at a time."""

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.settings.changes import parse_changes
from pipeline.settings.config import Experiment, replace
from pipeline.settings.experiment_file import at_scale, validate_experiment

VALUES: dict[str, Any] = {
    "name": "x",
    "model": {"hidden": 16, "layers": 2, "heads": 4},
    "sweep": {
        "arms": ["task_only"],
        "seeds": [0, 1],
        "search": {"samples": 3, "seed": 5, "space": {"training.learning_rate": {"uniform": [0.1, 0.2]}}},
        "grid": {"model.layers": [1, 2]},
    },
    "scales": {"deep": {"model": {"layers": 9}}},
}


@pytest.fixture
def experiment() -> Experiment:
    return validate_experiment(VALUES, "my.yaml")


def test_of_a_group_only_what_is_named_is_changed(experiment: Experiment) -> None:
    changed = replace(experiment, parse_changes(("model={layers: 3}", "sweep={search: {samples: 2}}")), "t")
    assert changed.model == experiment.model.model_copy(update={"layers": 3})
    assert changed.sweep is not None
    assert experiment.sweep is not None
    assert changed.sweep.search is not None
    assert (changed.sweep.search.samples, changed.sweep.search.seed) == (2, 5)
    assert changed.sweep.model_copy(update={"search": None}) == experiment.sweep.model_copy(update={"search": None})


def test_so_it_is_at_a_scale(experiment: Experiment) -> None:
    assert at_scale(experiment, "deep", "my.yaml").model == experiment.model.model_copy(update={"layers": 9})


def test_a_mapping_with_keys_of_ones_own_is_replaced_whole(experiment: Experiment) -> None:
    for changes in (("sweep.grid={model.gain: [0.5]}",), ("sweep={grid: {model.gain: [0.5]}}",)):
        changed = replace(experiment, parse_changes(changes), "t").sweep
        assert changed is not None
        assert dict(changed.grid) == {"model.gain": (0.5,)}
        assert changed.search is not None


def test_a_group_can_be_taken_away_or_put_where_there_is_none(experiment: Experiment) -> None:
    without = replace(experiment, parse_changes(("sweep=null",)), "t")
    assert without.sweep is None
    again = replace(without, parse_changes(("sweep={arms: [none], seeds: [7]}",)), "t").sweep
    assert again is not None
    assert (again.seeds, again.search) == ((7,), None)


def test_an_unknown_field_of_a_group_is_named(experiment: Experiment) -> None:
    with pytest.raises(UserError, match=r"model\.layer: no such setting \(did you mean 'model\.layers'\?\)"):
        replace(experiment, {"model": {"layer": 3}}, "t")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("model.layers=3", "model.layers=4"), "--set model.layers: is set twice, to 3 and to 4; expected once"),
        (("model.layers=3", " model.layers =3"), "--set model.layers: is set twice, to 3 and to 3"),
        (("model.layers=3", "model={layers: 4}"), "model.layers is set twice, by itself and with its group"),
        (("model={layers: 4}", "model.layers=3"), "model.layers is set twice, by itself and with its group"),
    ],
)
def test_a_field_that_is_set_twice_is_refused(experiment: Experiment, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        replace(experiment, parse_changes(changes), "my.yaml with --set")
    assert message in str(error.value)


def test_a_field_beside_its_group_is_set_once(experiment: Experiment) -> None:
    changed = replace(experiment, {"model.layers": 3, "model": {"hidden": 8}}, "t")
    assert (changed.model.layers, changed.model.hidden, changed.model.heads) == (3, 8, 4)
