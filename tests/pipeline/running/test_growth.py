"""A sweep that grows: what may be added to it, what is kept, and what MLflow and the report then say."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pipeline.running.sweep
from pipeline import api
from pipeline.errors import UserError
from pipeline.files import read_json, write_whole
from pipeline.layout import Output
from pipeline.records.sweep_record import grown, sweep_id
from pipeline.reporting.comparisons import Primary
from pipeline.reporting.grown import grown_words
from pipeline.reporting.report import make_report
from pipeline.reporting.results import Results
from pipeline.running.claim import claim
from pipeline.running.run_options import RunOptions
from pipeline.running.sweep import run_sweep
from pipeline.settings.config import Experiment, TrainingConfig, replace
from pipeline.settings.growth import growth
from pipeline.settings.trials import every_trial, trials_of
from pipeline.tracking.describe import SWEEP_ID
from pipeline.tracking.destination import EXPERIMENT
from pipeline.tracking.leaderboard import _varied
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from tests.pipeline.samples import write_config
from tests.pipeline.sweep_samples import EXTRA, experiment, metrics_at, trials, write_spool
from tests.pipeline.toy_training import RecordingTracker, toy_data, toy_experiment, toy_train

COMMAND = "tiny-onn ablate toy.yaml"
CONSTANT = TrainingConfig(steps=3, warmup_steps=1, batch_tokens=64, schedule="constant")
SWEEP = {
    "arms": ["per_token", "task_only"],
    "seeds": [0, 1],
    "grid": {"model.gain": [1.0, 2.0]},
    "search": {"samples": 2, "space": {"training.weight_decay": {"uniform": [0, 1]}}},
}
SEARCH: dict[str, Any] = {**SWEEP["search"]}  # type: ignore[dict-item]


def changed(changes: dict[str, Any], training: TrainingConfig = CONSTANT) -> Experiment:
    return replace(replace(toy_experiment(training=training), {"sweep": SWEEP}, "t"), changes, "t")


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"sweep.seeds": [1, 0, 5, 2]}, ("seed 5, 2",)),
        ({"sweep.arms": ["top_k", "per_token", "task_only", "dense"]}, ("arm top_k, dense",)),
        ({"sweep.grid": {"model.gain": [0.5, 1.0, 2.0]}}, ("model.gain 0.5",)),
        ({"sweep.search": {**SEARCH, "samples": 5}}, ("samples 3 to 5",)),
        ({"training.steps": 9}, ("steps 4 to 9",)),
        ({"sweep.seeds": [0, 1, 2], "training.steps": 9}, ("seed 2", "steps 4 to 9")),
        (
            {"sweep.arms": ["per_token", "task_only", "dense"], "sweep.arm_settings": {"dense": {"model.heads": 1}}},
            ("arm dense",),
        ),
    ],
)
def test_what_may_be_added_leaves_every_trial_as_it_was(changes: dict[str, Any], added: tuple[str, ...]) -> None:
    before, now = changed({}), changed(changes)
    grown = growth(before, now)
    assert (grown.added, grown.problems) == (added, ())
    new = {trial.key: trial.experiment for trial in trials_of(now)}
    for trial in trials_of(before):
        assert new[trial.key].digest() == trial.experiment.digest()


LINEAR = TrainingConfig(steps=3, warmup_steps=1, batch_tokens=64)


@pytest.mark.parametrize(
    ("changes", "training", "problem"),
    [
        ({"sweep.seeds": [1, 2]}, CONSTANT, r"sweep\.seeds: 0 was removed, but its trials exist\. Use \[0, 1, 2\]"),
        ({"sweep.arms": ["task_only"]}, CONSTANT, r"sweep\.arms: per_token was removed"),
        ({"sweep.grid": {"model.gain": [2.0]}}, CONSTANT, r"sweep\.grid\.model\.gain: 1\.0 was removed"),
        ({"sweep.grid": {"model.gain": [1.0, 2, 4.0]}}, CONSTANT, r"gain: 2\.0 was removed.* Use \[1\.0, 2\.0, 4\.0\]"),
        ({"sweep.grid": {}}, CONSTANT, r"sweep\.grid: model\.gain was removed.*Put it back"),
        (
            {"sweep.grid": {"model.gain": [1.0, 2.0], "model.layers": [3]}},
            CONSTANT,
            r"model\.layers was not varied bef",
        ),
        ({"sweep.search": {**SEARCH, "samples": 1}}, CONSTANT, r"samples: 2 before, 1 now\. Use 2 or more"),
        ({"training.steps": 2}, CONSTANT, r"training\.steps: 3 before, 2 now, for "),
        (
            {"training.steps": 9},
            LINEAR,
            r"3 before, 9 now, but with training\.schedule=linear .*=constant.*--set name=",
        ),
        (
            {"sweep.arm_settings": {"task_only": {"model.heads": 1}}},
            CONSTANT,
            r"task_only-s0-.* begun with settings",
        ),
    ],
)
def test_what_cannot_be_added_is_refused_with_the_reason(
    changes: dict[str, Any], training: TrainingConfig, problem: str, tmp_path: Path
) -> None:
    claim(tmp_path, changed({}, training), "aa", False, COMMAND)
    record = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(UserError, match=rf"(?s)which cannot grow in this way:\n  .*{problem}"):
        claim(tmp_path, changed(changes, training), "aa", True, COMMAND)
    assert (tmp_path / "sweep.json").read_bytes() == record


def test_a_sweep_that_prunes_gets_more_seeds_and_not_more_steps() -> None:
    asha = {"sweep.scheduler": {"asha": {"grace_steps": 1, "metric": "train/task_loss"}}, "training.log_every": 1}
    before = changed(asha)
    assert growth(before, changed({**asha, "sweep.seeds": [0, 1, 2]})).problems == ()
    (problem,) = growth(before, changed({**asha, "training.steps": 9})).problems
    assert "a scheduler has already compared and pruned trials" in problem


def test_a_claim_grows_once_asked_and_keeps_its_id(tmp_path: Path) -> None:
    told: list[str] = []
    claim(tmp_path, changed({}), "aa", False, COMMAND)
    known = sweep_id(tmp_path)
    more = changed({"sweep.seeds": [0, 1, 2]})
    with pytest.raises(UserError, match=rf"without seed 2\. Run what is new with:\n  {COMMAND} --resume"):
        claim(tmp_path, more, "aa", False, COMMAND)
    assert grown(tmp_path) == ""
    claim(tmp_path, more, "aa", True, COMMAND, report_growth=told.append)
    assert told == ["toy grows by seed 2. Trials that have ended with all their steps are kept."]
    assert sweep_id(tmp_path) == known
    assert grown(tmp_path).endswith(": seed 2")
    claim(tmp_path, more, "aa", True, COMMAND, report_growth=told.append)
    assert len(told) == 1
    claim(tmp_path, changed({"sweep.seeds": [0, 1, 2], "training.steps": 4}), "aa", True, COMMAND)
    assert [each.partition(": ")[2] for each in grown(tmp_path).split("; ")] == ["seed 2", "steps 4 to 4"]
    with pytest.raises(UserError, match="2 was removed"):
        claim(tmp_path, changed({}), "aa", True, COMMAND)
    with pytest.raises(UserError, match=r"another experiment.*\n  model.layers: there 3, now 4\n(?s:.*)can be added"):
        claim(tmp_path, changed({"sweep.seeds": [0, 1, 2, 3], "model.layers": 4}), "aa", True, COMMAND)


def test_the_code_of_a_new_arm_is_no_changed_code_and_that_of_an_old_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from tiny_onn.learning_cost import TokenCost\nCOST = TokenCost(lambda g, x, weight: g.abs() * {})\n"
    for name in ("old_cost_of_a_test", "new_cost_of_a_test"):
        (tmp_path / f"{name}.py").write_text(code.format(1))
        sys.modules.pop(name, None)
    monkeypatch.syspath_prepend(tmp_path)
    folder, first = tmp_path / "sweep", {"sweep": {"arms": ["old_cost_of_a_test:COST"], "seeds": [0]}}
    both = {"sweep": {"arms": ["old_cost_of_a_test:COST", "new_cost_of_a_test:COST"], "seeds": [0]}}
    claim(folder, changed(first), "aa", False, COMMAND)
    (tmp_path / "old_cost_of_a_test.py").write_text(code.format(2))
    with pytest.raises(UserError, match=r"old_cost_of_a_test\.py: is another") as refused:
        claim(folder, changed(both), "aa", True, COMMAND)
    assert "new_cost_of_a_test" not in str(refused.value)
    (tmp_path / "old_cost_of_a_test.py").write_text(code.format(1))
    claim(folder, changed(both), "aa", True, COMMAND)
    assert read_json(folder / "sweep.json")["user_code"].keys() == {"old_cost_of_a_test.py", "new_cost_of_a_test.py"}
    (tmp_path / "new_cost_of_a_test.py").write_text(code.format(2))
    with pytest.raises(UserError, match=r"new_cost_of_a_test\.py: is another"):
        claim(folder, changed(both), "aa", True, COMMAND)


def test_what_the_cluster_refuses_has_not_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def lacking(*_: Any) -> Iterator[Any]:
        raise UserError("workers.cpus: too few")
        yield

    monkeypatch.setattr(pipeline.running.sweep, "connect", lacking)
    data, output = toy_data(tmp_path / "data"), Output(tmp_path)
    first = toy_experiment(training=CONSTANT, arms=("task_only",))
    claim(output.sweep("toy"), first, data.manifest.data_hash, False, COMMAND)
    place = output.trial("toy", "task_only-s0")
    write_whole(place.result, json.dumps({"steps": 3}))
    record = (output.sweep("toy") / "sweep.json").read_bytes()
    longer = replace(first, {"training.steps": 5}, "t")
    with pytest.raises(UserError, match="too few"):
        run_sweep(
            longer,
            trials_of(longer),
            data,
            RunOptions(output, resume=True, command=COMMAND, address="127.0.0.1:1"),
            train_fn=toy_train,
            tracker=RecordingTracker(),
        )
    assert (output.sweep("toy") / "sweep.json").read_bytes() == record
    assert read_json(place.result) == {"steps": 3}


def test_mlflow_goes_on_in_the_same_runs_and_the_report_has_one_setting_of_steps(tmp_path: Path) -> None:
    output = Output(tmp_path)
    folder = output.sweep("sample")
    before = replace(experiment(seeds=(0,)), {"training.schedule": "constant"}, "t")
    after = replace(before, {"training.steps": 30, "sweep.seeds": [0, 1], "description": "GeneratedText better."}, "t")
    runs = []
    for sample, steps in ((before, (0, 10, 20)), (after, (0, 10, 20, 30))):
        claim(folder, sample, EXTRA["data_hash"], True, COMMAND)
        extra = EXTRA | {SWEEP_ID: str(sweep_id(folder))}
        tracker = Tracker(output.tracking_uri, EXPERIMENT, output.artifacts)
        tracker.start_summary(folder, sample)
        for trial, place in trials(output, sample):
            write_spool(trial, place, steps)
            delivery = tracker.start_trial(place, trial, "sample", extra)
            tracker.end_trial(delivery, "FINISHED")
        tracker.end_summary("FINISHED", [])
        assert tracker.close("KILLED") == {}
        client = open_store(output.tracking_uri)
        listed = client.search_runs([tracker.experiment_id])
        runs.append({run.info.run_id: run for run in listed})
    assert runs[0].keys() < runs[1].keys()
    assert len(runs[0]) == 4  # three arms, and the summary
    assert len(runs[1]) == 7
    assert {run.info.status for run in runs[1].values()} == {"FINISHED"}
    of_trials = [run for run in runs[1].values() if run.data.tags["role"] == "trial"]
    assert _varied(of_trials) == []
    assert {run.data.tags.get("continued_to_steps", run.data.params["training.steps"]) for run in of_trials} == {"30"}
    made = make_report(output.tracking_uri, EXPERIMENT, "sample")
    assert made.results.varying == []
    assert (made.results.finished, made.results.total, len(made.results.rows)) == (6, 6, 3)
    assert [sorted(row.trials) for row in made.results.rows] == [[0, 1]] * 3
    assert made.results.about["grown"].endswith("seed 1; steps 21 to 30")
    assert any(each.startswith("This sweep has grown since it was begun: 20") for each in made.findings)
    first = next(run for run in of_trials if run.info.run_id in runs[0])
    points = client.get_metric_history(first.info.run_id, "train/task_loss")
    assert [point.step for point in points] == [0, 10, 20, 30]
    config = client.download_artifacts(first.info.run_id, "config.json", str(tmp_path))
    assert json.loads(Path(config).read_text())["training"]["steps"] == 30
    assert metrics_at  # the numbers of the sample


def test_added_seeds_are_reported_where_a_test_was_named_beforehand() -> None:
    results = Results("s", [], {}, 0, [], {"grown": "2026-11-27: seed 3"})
    (words,) = grown_words(results, Primary("excess of opening"))
    assert "it is too small" in words
    assert "p-value" not in grown_words(results, None)[0]
    assert grown_words(Results("s", [], {}, 0, []), Primary("x")) == []


def test_one_run_alone_grows_too_and_a_plan_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, output = write_config(tmp_path), tmp_path / "o"
    steps = {"sweep": None, "training.schedule": "constant"}
    first = api.read(config, steps)
    data = api.prepare(config, output=output)
    claim(Output(output).sweep("look"), first, data.manifest.data_hash, False, COMMAND)
    (trial,) = every_trial(first)
    write_whole(Output(output).trial("look", trial.key).result, json.dumps({"steps": 9}))
    forecast = api.plan(config, {**steps, "training.steps": 12}, output, calibrate=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "look has been started before; it would grow by steps 10 to 12." in said
    assert (forecast.trials, forecast.ended) == (1, 0)
