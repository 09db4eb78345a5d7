"""Settings drawn from a space: what they are, that they come again, and what is refused."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import measures
from pipeline.errors import UserError
from pipeline.settings.cadence import is_evaluated, is_logged
from pipeline.settings.config import StudyConfig, TrainingConfig, replace
from pipeline.settings.experiment_file import validate_experiment
from pipeline.settings.search import AshaConfig, Domain, SearchConfig, sample
from pipeline.settings.trials import trials_of
from pipeline.settings.varied import check_pruning

SPACE: dict[str, Any] = {
    "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "model.layers": {"choice": [4, 6]},
    "model.hidden": {"quniform": [16, 64, 16]},
    "training.warmup_steps": {"randint": [1, 30]},
    "model.gain": {"uniform": [0.5, 2]},
    "training.weight_decay": {"quniform": [0.0, 0.1, 0.01]},
}
PLAIN = {"model.layers": {"choice": [4, 6]}}


def swept(**sweep: Any) -> dict[str, Any]:
    """Settings with a sweep of two arms and two seeds."""
    return {"name": "x", "sweep": {"arms": ["per_token", "task_only"], "seeds": [0, 5], **sweep}}


def search(samples: int = 8, seed: int = 0, space: dict[str, Any] = SPACE) -> SearchConfig:
    return SearchConfig(samples=samples, seed=seed, space={name: Domain(**domain) for name, domain in space.items()})


def test_every_arm_and_seed_gets_the_same_settings() -> None:
    trials = trials_of(
        validate_experiment(swept(search={"samples": 3, "space": SPACE}, grid={"model.heads": [1, 2]}), "t")
    )
    assert len({trial.key for trial in trials}) == len(trials) == 2 * 2 * 2 * 3
    assert [trial.key for trial in trials[:3]] == [
        "per_token-s0-heads_1-sample_1",
        "task_only-s0-heads_1-sample_1",
        "per_token-s0-heads_1-sample_2",
    ]
    settings: dict[str, set[str]] = {}
    for trial in trials:
        alike = trial.experiment.training.model_copy(update={"arm": "task_only", "seed": 0})
        model = trial.experiment.model.model_copy(update={"heads": 1})
        settings.setdefault(trial.key.rpartition("-")[2], set()).add(f"{alike} {model}")
    assert {name: len(drawn) for name, drawn in settings.items()} == {"sample_1": 1, "sample_2": 1, "sample_3": 1}
    assert len(set.union(*settings.values())) == 3


def test_a_draw_comes_again_in_another_process_and_a_longer_search_begins_with_the_shorter() -> None:
    code = (
        "import json, sys\nfrom tests.pipeline.settings.test_search import sample, search\n"
        "print(json.dumps(sample(search(samples=5, seed=7))))"
    )
    again = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert json.loads(again.stdout) == list(sample(search(samples=5, seed=7)))
    assert sample(search(samples=9, seed=7))[:5] == sample(search(samples=5, seed=7))
    assert sample(search(seed=7)) != sample(search(seed=8))
    backwards = dict(reversed(SPACE.items()))
    assert sample(search(space=backwards)) == sample(search())  # the order of the fields means nothing
    assert sample(search(2, 0, {"training.learning_rate": {"uniform": [0, 1]}})) == (  # written down: never to change
        {"training.learning_rate": 0.05986},
        {"training.learning_rate": 0.5308},
    )


def test_what_is_drawn_is_in_the_domain_of_that_name_in_ray_tune() -> None:
    tune = pytest.importorskip("ray.tune")
    drawn = sample(search(samples=200))
    for field, domain in SPACE.items():
        ((kind, bounds),) = domain.items()
        theirs = getattr(tune, kind)(bounds) if kind == "choice" else getattr(tune, kind)(*bounds)
        values = [settings[field] for settings in drawn]
        assert all(theirs.is_valid(value) for value in values), field
        assert len(set(values)) >= {"choice": 2, "quniform": 4, "randint": 25}.get(kind, 150), field
    assert {settings["model.hidden"] for settings in drawn} == {16, 32, 48, 64}
    assert all(type(settings["model.hidden"]) is int for settings in drawn)
    assert {settings["training.weight_decay"] for settings in drawn} == {n / 100 for n in range(11)}
    # Half of loguniform lies below the geometric mean of its ends: 1e-3. Of 200, 100 +- 7.1 (one sigma).
    logs = [math.log10(settings["training.learning_rate"]) for settings in drawn]
    assert 70 < sum(value < -3 for value in logs) < 130
    assert statistics.fmean(logs) == pytest.approx(-3.0, abs=0.2)  # sigma 2 / sqrt(12 * 200) = 0.04


def test_the_places_map_to_values_by_hand() -> None:
    assert [Domain(choice=("a", "b")).at(place) for place in (0.0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]
    assert [Domain(randint=(3, 6)).at(place) for place in (0.0, 0.34, 0.99)] == [3, 4, 5]
    assert [Domain(quniform=(10, 30, 10)).at(place) for place in (0.0, 0.34, 0.99)] == [10, 20, 30]
    assert Domain(loguniform=(1e-4, 1e-2)).at(0.5) == 1e-3
    assert Domain(uniform=(1, 3)).at(0.25) == 1.5
    assert Domain(uniform=(0, 1)).at(1 / 3) == 0.3333
    assert Domain(uniform=(0.12342, 0.9)).at(0.0) == 0.12342  # rounding does not lead out of the domain


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
@pytest.mark.parametrize(("low", "high"), [(0.99991, 0.99999), (100, 100.05), (1_000_000, 1_000_400)])
def test_a_narrow_domain_is_drawn_from_evenly_and_not_rounded_to_its_ends(kind: str, low: float, high: float) -> None:
    domain = Domain(**{kind: (low, high)})
    drawn = [domain.at((place + 0.5) / 100) for place in range(100)]
    even = [low + (high - low) * (place + 0.5) / 100 for place in range(100)]
    assert drawn == pytest.approx(even, rel=0, abs=(high - low) / 500)


def test_no_two_samples_are_alike() -> None:
    assert sorted(settings["model.layers"] for settings in sample(search(2, 3, PLAIN))) == [4, 6]
    with pytest.raises(ValueError, match=r"samples: found 3, but the space has only about 2 different ones"):
        sample(search(3, 3, PLAIN))


def test_the_metrics_to_watch_are_measured() -> None:
    names = {value for name, value in vars(measures).items() if name.isupper() and isinstance(value, str)}
    for metric, mode in (("held_out/loss", "min"), ("train/task_loss", "min"), ("held_out/token_accuracy", "max")):
        assert metric in names
        assert AshaConfig(metric=metric, grace_steps=1).mode == mode  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", ["loss", "token_accuracy"])
def test_a_metric_may_be_named_as_it_was_in_older_configs(measure: str) -> None:
    older, newer = (
        AshaConfig(metric=f"{group}/{measure}", grace_steps=1)  # type: ignore[arg-type]
        for group in ("eval", "held_out")
    )
    assert older == newer
    words = dict.fromkeys(("question", "control", "intervention", "expectation"), "x")
    assert StudyConfig(**words, primary_metric=f"eval/{measure}").primary_metric == f"held_out/{measure}"
    assert StudyConfig(**words, primary_metric="activation").primary_metric == "activation"


RATE = "training.learning_rate"


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ({"logunifrom": [0.1, 1]}, "no such domain (did you mean 'loguniform'?)"),
        ({"uniform": [0.1, 1], "choice": [1]}, "learning_rate.uniform: expected exactly one of uniform, loguniform"),
        ({}, "learning_rate: found {}; expected one of uniform, loguniform"),
        (3, "learning_rate: found 3; expected one of uniform, loguniform"),
        ([0.1, 1], "learning_rate: found [0.1, 1]; expected one of uniform, loguniform"),
        ({"loguniform": [0, 1]}, "loguniform: expected low > 0; found 0"),
        ({"uniform": [1, 1]}, "uniform: expected low < high; found 1 and 1"),
        ({"uniform": [True, 2]}, "uniform.0"),
        ({"uniform": [0.1, float("nan")]}, "found not a finite number"),
        ({"choice": []}, "choice: expected different values, at least one"),
        ({"quniform": [1, 2, 5]}, "expected q > 0 with a multiple between 1 and 2"),
        ({"quniform": [0, 1, 1e-300]}, "expected q > 0 with a multiple"),
        # What could be drawn is refused, even if it happens not to be.
        ({"loguniform": [1e-3, 100]}, "loguniform: 100.0 may be sampled; input should be less than or equal to 10"),
        ({"choice": [1e-3, -1]}, "choice: -1 may be sampled; input should be greater than 0"),
    ],
)
def test_a_domain_that_cannot_be_is_refused(domain: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        validate_experiment(swept(search={"samples": 1, "space": {RATE: domain}}), "my.yaml")
    assert str(error.value).startswith("my.yaml")
    assert f"sweep.search.space.{RATE}" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("samples", "space", "message"),
    [
        (4, {"training.learning_rat": {"uniform": [0.1, 1]}}, f"(did you mean {RATE!r}?)"),
        (4, {"model.layers": {"uniform": [2, 4]}}, "for whole numbers use randint"),
        (9, {"model.hidden": {"randint": [16, 64]}}, "cannot be cut into 2 heads"),
        (4, {}, "sweep.search.space: found {}"),
        (0, PLAIN, "sweep.search.samples: found 0"),
        (3, PLAIN, "sweep.search.samples: found 3, but the space has only about 2"),
        (3000, {RATE: {"uniform": [0.1, 1]}}, "make 12000 trials; at most 10000"),
        (2, {"data.max_tokens": {"choice": [400, 600]}}, "cannot differ between the trials"),
        (2, {"training.seed": {"randint": [0, 9]}}, "cannot differ between the trials"),
    ],
)
def test_a_search_that_cannot_be_is_refused(samples: int, space: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        validate_experiment(swept(search={"samples": samples, "space": space}), "my.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"search": {"sample": 4, "space": PLAIN}},
            "search.sample: no such setting (did you mean 'sweep.search.samples'?",
        ),
        ({"grid": {"model.layers": [4]}}, "model.layers stands in grid too"),
        ({"scheduler": {"pbt": {}}}, "sweep.scheduler.pbt: population based"),
        ({"scheduler": {"ahsa": {}}}, "(did you mean 'sweep.scheduler.asha'?)"),
        ({"search": None, "scheduler": {"asha": {"grace_steps": 10}}}, "prunes samples, but there is no search"),
        ({"scheduler": {"asha": {"metric": "held_out/los", "grace_steps": 9}}}, "(did you mean 'held_out/loss'?)"),
        ({"scheduler": {"asha": {"grace_steps": 0}}}, "sweep.scheduler.asha.grace_steps: found 0"),
        ({"scheduler": {"asha": {"grace_steps": 9, "reduction_factor": 1}}}, "reduction_factor: found 1"),
        (
            {"scheduler": {"asha": {"grace_steps": 201}}},
            "grace_steps: found 201, but with held_out/loss measured every 100 steps nothing could be pruned",
        ),
        (
            {"scheduler": {"asha": {"grace_steps": 300, "metric": "train/task_loss"}}},
            "measured every 10 steps nothing could be pruned before a trial's end at step 300",
        ),
        (
            {
                "search": {"samples": 2, "space": {"training.steps": {"randint": [200, 300]}}},
                "scheduler": {"asha": {"grace_steps": 9}},
            },
            "training.steps cannot be sampled beside a scheduler",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        validate_experiment(swept(**{"search": {"samples": 2, "space": PLAIN}, **change}), "my.yaml")
    assert message in str(error.value)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(2, 90), st.booleans())
def test_pruning_is_possible_where_a_step_measures_what_it_compares(
    log: int, every: int, grace: int, steps: int, of_training: bool
) -> None:
    training = TrainingConfig(steps=steps, warmup_steps=1, log_every=log, evaluate_every=every, checkpoint_every=37)
    asha = AshaConfig(metric="train/task_loss" if of_training else "held_out/loss", grace_steps=grace)
    wanted = is_logged if of_training else is_evaluated
    measured = [step for step in range(1, steps) if wanted(training, step)]
    try:
        check_pruning(asha, training, "t")
        possible = True
    except UserError:
        possible = False
    assert possible == any(step >= grace for step in measured)


def test_a_part_of_a_search_can_be_replaced_from_the_command_line() -> None:
    whole = validate_experiment(swept(search={"samples": 4, "space": SPACE}), "t")
    changes = {"sweep.search.samples": 2, "sweep.search.seed": 1}
    fewer = replace(whole, changes, "t")
    assert fewer.sweep is not None
    assert fewer.sweep.search == search(samples=2, seed=1)
    assert len(trials_of(fewer)) == 8


def test_arms_may_be_let_compete_without_a_search() -> None:
    experiment = validate_experiment(swept(scheduler={"asha": {"grace_steps": 100, "across_arms": True}}), "t")
    assert len(trials_of(experiment)) == 4


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["uniform", "randint", "quniform"]), v),
    )
)
def test_no_value_crashes_a_search(value: object) -> None:
    for space in (value, {RATE: value}, {RATE: {"loguniform": value}}, {"model.layers": {"quniform": value}}):
        try:
            validate_experiment(swept(search={"samples": 2, "space": space}), "t")
        except UserError:
            continue
