from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.settings.config import Experiment, replace
from pipeline.settings.experiment_file import at_scale, read_experiment, validate_experiment
from pipeline.settings.trials import trials_of
from pipeline.settings.yaml_file import read_yaml

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "name: is missing"),
        ({"name": "../x"}, "name: found '../x'; expected 1 to 64 letters, digits"),
        ({"name": ".."}, "name: found '..'; expected 1 to 64 letters, digits"),
        ({"name": "a/b"}, "it names a folder"),
        ({"name": "x", "training": {"engine": "fussed"}}, "training.engine: found 'fussed'"),
        ({"name": "x", "training": {"engine": "fussed"}}, "'hooks' (did you mean 'fused'?)"),
        ({"name": "x", "data": {"dataset": "arc-agi2"}}, "'folder' (did you mean 'arc-agi-2'?)"),
        ({"name": "x", "data": {"dataset": "folder", "folder": ""}}, "data.folder: found ''"),
        ({"name": "x", "training": {"arm": "../m:c"}}, "training.arm: unknown arm '../m:c'"),
        ({"name": "x", "training": {"steps": 300.0}}, "found 300.0; input should be a valid integer; write 300"),
        ({"name": "x", "training": {"seed": 10**30}}, "training.seed: found 1000000"),
        ({"name": "x", "training": {"steps": -5}}, "training.steps: found -5"),
        ({"name": "x", "training": [1]}, "training: found [1]"),
        ({"name": "x", "model": {"layers": 0}}, "model.layers: found 0"),
        ({"name": "x", "workers": {"count": 0}}, "workers.count: found 0"),
        ({"name": "x", "workers": {"cpus": float("inf")}}, "workers.cpus: found not a finite number"),
        ({"name": "x", "training": {"weight_decay": float("nan")}}, "training.weight_decay: found not a finite number"),
        ({"name": "x", "model": {"hidden": 7, "heads": 1}}, "model.hidden=7 cannot be cut into 1 heads of even width"),
        ({"name": "x", "training": {"arm": "aggregated", "engine": "fused"}}, "training.engine: fused cannot run"),
        ({"name": "x" * 200}, "name: found 'xxxx"),
        ({"name": "x", "trainin": {}}, "trainin: no such setting (did you mean 'training'?)"),
        ({"name": "x", "training": {"stepps": 3}}, "training.stepps: no such setting (did you mean 'training.steps'?)"),
        ({"name": "x", "training": {"arm": "per_tokn"}}, "unknown arm 'per_tokn' (did you mean 'per_token'?)"),
        ({"name": "x", "training": {"steps": True}}, "training.steps: found True"),
        ({"name": "x", "training": {"steps": "300"}}, "training.steps: found '300'"),
        ({"name": "x", "training": {"steps": 0}}, "training.steps: found 0"),
        ({"name": "x", "training": {"learning_rate": float("nan")}}, "not a finite number"),
        ({"name": "x", "training": {"steps": 10, "warmup_steps": 10}}, "warmup_steps=10 must be smaller than steps=10"),
        ({"name": "x", "model": {"hidden": 63, "heads": 4}}, "nearest: hidden=56 or 64"),
        ({"name": "x", "data": {"dataset": "arc-agi-3"}}, "data.dataset: found 'arc-agi-3'"),
        ({"name": "x", "data": {"dataset": "folder"}}, "data.folder: is missing; with dataset: folder it names"),
        ({"name": "x", "data": {"folder": "y"}}, "data.folder: found 'y', but dataset: arc-agi-2; expected"),
        ({"name": "x", "training": None}, "training: found nothing; expected settings by name"),
        ({"name": "x", "training": 3}, "training: found 3; expected settings by name, as {name: value}"),
        ({"name": "x", "scales": {"gpu": 3}}, "scales.gpu: found 3; expected settings by name"),
        (
            {"name": "x", "sweep": {"arms": "task_only", "seeds": [0]}},
            "arms: found 'task_only'; expected a list, as in [task_only]",
        ),
        ({"name": "x", "sweep": {"arms": ["task_only"], "seeds": []}}, "seeds: found []; expected at least 1 of them"),
        ({"name": "x", "workers": {"count": 4}}, "use batch_tokens >= 2048"),
        ({"name": "x", "sweep": {"arms": ["task_only", "task_only"], "seeds": [0]}}, "arms: has a value twice"),
        (
            {"name": "x", "sweep": {"arms": ["task_onl"], "seeds": [0]}},
            "unknown arm 'task_onl' (did you mean 'task_only'?)",
        ),
        (
            {"name": "x", "sweep": {"arms": ["task_only"], "seeds": [0], "grid": {"model.layer": [1]}}},
            "sweep.grid: 'model.layer' is no setting (did you mean 'model.layers'?)",
        ),
        *(
            (
                {"name": "x", "sweep": {"arms": ["task_only"], "seeds": [0], "grid": {field: [value]}}},
                f"sweep.grid: {field!r} cannot differ between the trials of a sweep",
            )
            for field, value in [
                ("data.max_tokens", 64),  # all trials read one data set
                ("training.arm", "fisher"),
                ("name", "y"),
                ("model", {"hidden": 8}),
                ("sweep.max_concurrent", 1),
            ]
        ),
        (
            {"name": "x", "sweep": {"arms": ["task_only"], "seeds": list(range(20_000))}},
            "make 20000 trials; at most 10000",
        ),
        ({"name": "x", "sweep": {"arms": ["task_only"], "seeds": [-1]}}, "sweep.seeds.0: found -1"),
    ],
)
def test_bad_settings_are_named(values: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        validate_experiment(values, "my.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("my.yaml")


def test_a_list_whose_items_are_refused_is_not_reported_as_empty_too() -> None:
    with pytest.raises(UserError) as error:
        validate_experiment({"name": "x", "sweep": {"arms": ["task_only"], "seeds": [-1]}}, "my.yaml")
    assert str(error.value) == "my.yaml:\n  sweep.seeds.0: found -1; input should be greater than or equal to 0"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("sweep.seeds", "cannot be set, as there is no `sweep` yet; set all of it: sweep={seeds: ...}"),
        ("study.question", "no `study` yet; set all of it: study={question: ...}"),
        ("sweep.grid.model.layers", "cannot be set alone; set all of it: sweep.grid={model.layers: ...}"),
        ("training.step", "is no setting (did you mean 'training.steps'?)"),
    ],
)
def test_a_dotted_name_without_a_place_says_what_to_set_instead(field: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        replace(validate_experiment({"name": "x"}, "my.yaml"), {field: 1}, "my.yaml with --set")
    assert f"my.yaml with --set: {field!r} " in str(error.value)
    assert message in str(error.value)


def test_a_value_that_could_not_stand_in_a_file_is_named_with_its_setting() -> None:
    experiment = validate_experiment({"name": "x"}, "my.yaml")
    for field, value, kind in (("data.folder", Path("y"), "PosixPath"), ("model.layers", {3}, "set")):
        with pytest.raises(UserError, match=f"^t: {field}: found .*, a {kind}; expected text, a number"):
            replace(experiment, {field: value}, "t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' stands twice (first on line 1)"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases are not supported"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: tags are not supported"),
        ("a:\n\t- 1\n", "line 2"),
        ("- 1\n", "expected a mapping"),
        ("1: 2\n", "keys must be text"),
        ("{[a]: 2}\n", "keys must be text"),
        ("a: !!binary aGVsbG8=\n", "line 1: tags are not supported"),
        ("a: 1\nb: !!set {c}\n", "line 2: tags are not supported"),
        ("a: 1\n<<: {b: 2}\n", "line 2: "),
        ("a: 1\n---\nb: 2\n", "line 2: "),
        ("a: " + "[" * 5000, "line 1: nested more than 20 deep"),
        ("a: " + "9" * 5000, "line 1: a number of 5000 digits"),
        ('a: 1\nb: "\\ud800"\n', "line 2: text holds half a character"),
        ("a: \0\n", "not valid YAML (unacceptable character #x0000"),
        ("", "expected a mapping of settings at the top, found nothing"),
        ("# " + "x" * 1_000_001, "has more than 1000000 bytes"),
    ],
)
def test_yaml_traps_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert message in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    for path in (tmp_path / "binary.yaml", tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UserError, match=f"{path}: cannot be read"):
            read_yaml(path)


def test_yaml_values_are_what_people_mean(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1e-3\nb: no\nc: true\nd: 012\ne: 3\nf: -2.5\ng: .5\nh: null\n")
    assert read_yaml(path) == {"a": 1e-3, "b": "no", "c": True, "d": "012", "e": 3, "f": -2.5, "g": 0.5, "h": None}


def test_a_sweep_is_arms_times_seeds_times_grid() -> None:
    experiment = validate_experiment(
        {"name": "x", "sweep": {"arms": ["per_token", "task_only"], "seeds": [0, 5], "grid": {"model.layers": [4, 6]}}},
        "t",
    )
    trials = trials_of(experiment)
    assert len({t.key for t in trials}) == 8
    assert trials[0].key == "per_token-s0-layers_4"
    assert {(t.experiment.training.arm, t.experiment.training.seed, t.experiment.model.layers) for t in trials} == {
        (arm, seed, layers) for arm in ("per_token", "task_only") for seed in (0, 5) for layers in (4, 6)
    }
    # A trial is its control with the named fields replaced.
    assert replace(trials[1].experiment, {"training.arm": "per_token"}, "t") == trials[0].experiment


def test_every_trial_has_a_folder_of_its_own_whatever_it_is_called() -> None:
    arms = ["pack.mod:cost", "pack.mod_cost:x", "pack:mod_cost_x", "_own:cost", "pack:" + "long" * 30, "task_only"]
    trials = trials_of(validate_experiment({"name": "x", "sweep": {"arms": arms, "seeds": [0]}}, "t"))
    assert [t.experiment.training.arm for t in trials] == arms
    assert len({t.key for t in trials}) == len(arms)
    assert trials[0].key == "pack.mod_cost-s0"
    assert trials[3].key == "x_own_cost-s0"
    grid = {"training.compile": ["auto", "eager"], "model.gain": [1, 1.0]}  # one number, written in two ways
    with pytest.raises(UserError, match=r"sweep\.grid\.model\.gain: has a value twice"):
        validate_experiment({"name": "x", "sweep": {"arms": ["task_only"], "seeds": [0], "grid": grid}}, "t")


@pytest.mark.parametrize("name", ["ablation", "search", "smoke"])
def test_the_experiments_that_ship_are_valid(name: str) -> None:
    assert read_experiment(ROOT / "experiments" / f"{name}.yaml").name == name


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_study_says_beforehand_what_it_expects(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.name == f"study-{path.stem}"
    assert experiment.study is not None
    assert experiment.sweep is not None
    assert experiment.study.reference in experiment.sweep.arms
    trials = trials_of(experiment)
    assert all(trial.experiment.study is None for trial in trials)
    large = trials_of(at_scale(experiment, "gpu", str(path)))  # the same study
    assert [trial.experiment.training.arm for trial in large] == [trial.experiment.training.arm for trial in trials]
    assert all(trial.experiment.model.hidden == 512 for trial in large)


def test_a_scale_is_the_same_sweep_with_other_settings() -> None:
    values = {
        "name": "x",
        "sweep": {"arms": ["task_only"], "seeds": [0]},
        "scales": {"big": {"model.layers": 9, "training.steps": 500}},
    }
    experiment = validate_experiment(values, "my.yaml")
    big = at_scale(experiment, "big", "my.yaml")
    assert replace(experiment, {"model.layers": 9, "training.steps": 500, "name": "x-big", "scales": {}}, "t") == big
    with pytest.raises(UserError, match=r"my\.yaml: has no scale 'bigg' \(did you mean 'big'\?\); there are: big"):
        at_scale(experiment, "bigg", "my.yaml")
    with pytest.raises(UserError, match=r"my\.yaml: scale big: 'model\.layer' is no setting"):
        validate_experiment(values | {"scales": {"big": {"model.layer": 9}}}, "my.yaml")
    with pytest.raises(UserError, match=r"my\.yaml, scale big:\n  model\.layers: found 0"):
        validate_experiment(values | {"scales": {"big": {"model.layers": 0}}}, "my.yaml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_no_value_crashes_the_loader(value: object) -> None:
    for values in ({"name": "x", "training": value}, {"name": value}, {"name": "x", "sweep": value}):
        try:
            validate_experiment(values, "t")
        except UserError:
            continue


STUDY = {"question": "q", "intervention": "i", "primary_metric": "excess", "expectation": "e"}
PRIMARY = {**STUDY, "primary_arm": "aggregated", "primary_cell": {"model.gain": 2}}


def _study(study: dict[str, Any]) -> Experiment:
    sweep = {"arms": ["per_token", "aggregated"], "seeds": [0], "grid": {"model.gain": [1, 2]}}
    return validate_experiment({"name": "x", "sweep": sweep, "study": study}, "t")


def test_the_reference_was_once_called_control() -> None:
    for study, reference in (({}, "per_token"), ({"control": "aggregated"}, "aggregated")):
        parsed = _study({**STUDY, **study}).study
        assert parsed is not None
        assert parsed.reference == reference
    again = validate_experiment(_study({**PRIMARY, "control": "per_token"}).model_dump(mode="json"), "t")
    assert again == _study(PRIMARY)


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (
            {"reference": "nosuch"},
            r"study\.reference: found 'nosuch'; expected one of sweep\.arms: per_token, aggregated",
        ),
        ({"primary_metric": "exces"}, r"primary_metric: found 'exces'.*excess.*expected one of"),
        ({"primary_arm": "task_only"}, r"study\.primary_arm: found 'task_only'; expected one of sweep\.arms"),
        ({"primary_cell": {}}, r"study\.primary_cell: found \{\}; expected each field of sweep\.grid"),
        ({"primary_cell": {"model.gain": 3}}, r"study\.primary_cell: found .*expected each field of sweep\.grid"),
        ({"primary_arm": None}, r"primary_cell: needs primary_arm"),
        ({"primary_arm": "per_token", "primary_metric": "held_out/loss"}, r"the reference itself; expected another"),
    ],
)
def test_a_primary_comparison_that_cannot_be_made_is_refused(study: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        _study({**PRIMARY, **study})
