"""A user's code that changes in mid-sweep is never mixed in without a word."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.data.manifest import Prepared
from pipeline.data.shards import prepare
from pipeline.errors import UserError
from pipeline.files import read_json, write_whole
from pipeline.layout import Output, TrialFolder
from pipeline.records.sweep_record import sweep_id
from pipeline.reporting.report import make_report
from pipeline.running.claim import claim
from pipeline.running.provenance import note_attempt
from pipeline.settings.config import Experiment, SweepConfig
from pipeline.settings.experiment_file import read_experiment
from pipeline.settings.trials import trials_of
from pipeline.settings.user_code import code_digest, user_code
from pipeline.tracking.tracker import Tracker
from tests.pipeline.delivery_samples import leave
from tests.pipeline.samples import write_config
from tests.pipeline.sweep_samples import EXTRA, experiment
from tests.pipeline.toy_training import toy_experiment

COST = """
from tiny_onn.learning_cost import TokenCost

COST = TokenCost(lambda grad_output, x, weight: grad_output.abs() * x.norm(dim=-1, keepdim=True) * {})
"""
COMMAND = "tiny-onn ablate toy.yaml"
ARM = "field_mid_sweep:COST"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "code" / "field_mid_sweep.py"
    path.parent.mkdir()
    sys.modules.pop("field_mid_sweep", None)  # of an earlier test, in another folder
    path.write_text(COST.format(1))
    monkeypatch.syspath_prepend(path.parent)
    return path


def mine() -> Experiment:
    return toy_experiment(sweep=SweepConfig(arms=("task_only", ARM), seeds=(0, 1)))


def test_a_resume_with_other_code_is_refused_with_the_difference(tmp_path: Path, module: Path) -> None:
    folder = tmp_path / "sweep"
    claim(folder, mine(), "aa", False, COMMAND)
    known = sweep_id(folder)
    claim(folder, mine(), "aa", True, COMMAND)  # unchanged
    module.write_text(COST.format(2))
    with pytest.raises(UserError) as refused:
        claim(folder, mine(), "aa", True, COMMAND)
    for words in ("field_mid_sweep.py: is another", "  +COST = ", "* 2)", f"{COMMAND} --resume --accept-changed-code"):
        assert words in str(refused.value)
    claim(folder, mine(), "aa", True, COMMAND, anything_left=False)  # a report alone mixes nothing
    with pytest.raises(UserError, match="has changed"):
        claim(folder, mine(), "aa", True, COMMAND)
    claim(folder, mine(), "aa", True, COMMAND, accept_changed_code=True)
    assert sweep_id(folder) == known
    claim(folder, mine(), "aa", True, COMMAND)  # from now on this is the code
    module.write_text(COST.format(1))
    with pytest.raises(UserError, match="has changed"):
        claim(folder, mine(), "aa", True, COMMAND)


def test_a_record_from_before_gets_the_code_and_a_lost_one_is_no_way_around(tmp_path: Path, module: Path) -> None:
    folder = tmp_path / "sweep"
    claim(folder, mine(), "aa", False, COMMAND)
    record = read_json(folder / "sweep.json")
    del record["user_code"]
    write_whole(folder / "sweep.json", json.dumps(record))
    claim(folder, mine(), "aa", True, COMMAND)
    assert "field_mid_sweep.py" in read_json(folder / "sweep.json")["user_code"]

    trial = next(each for each in trials_of(mine()) if each.experiment.training.arm == ARM)
    place = TrialFolder(folder / "trials" / trial.key)
    write_whole(place.config, trial.experiment.model_dump_json())
    note_attempt(place, 1, "session", trial.experiment)
    (folder / "sweep.json").unlink()
    module.write_text(COST.format(2))
    with pytest.raises(UserError, match=f"has changed since {trial.key} was last run"):
        claim(folder, mine(), "aa", True, COMMAND)
    claim(folder, mine(), "aa", True, COMMAND, accept_changed_code=True)


def test_the_command_refuses_before_anything_starts(tmp_path: Path, module: Path) -> None:
    path = write_config(tmp_path)
    words = ["ablate", str(path), "--output", str(tmp_path / "o"), "--set", f"sweep.arms=[task_only, '{ARM}']"]
    config = read_experiment(path)
    assert config.sweep
    config = config.model_copy(update={"sweep": SweepConfig(arms=("task_only", ARM), seeds=config.sweep.seeds)})
    data: Prepared = prepare(config.data, Output(tmp_path / "o").data)
    claim(Output(tmp_path / "o").sweep("look"), config, data.manifest.data_hash, False, "")
    module.write_text(COST.format(2))
    ran = CliRunner().invoke(main, [*words, "--resume"])
    assert ran.exit_code == 2, (ran.output, ran.exception)
    assert "your own code has changed" in ran.output
    assert "--resume --accept-changed-code" in ran.output


def test_a_worker_that_finds_other_code_does_not_train(tmp_path: Path, module: Path) -> None:
    from pipeline.running.driver import may_pass
    from pipeline.running.entry import train_fn_per_worker
    from pipeline.running.trial_spec import TrialSpec

    (trial,) = trials_of(toy_experiment(arms=(ARM,)))
    began = code_digest(user_code(trial.experiment))
    spec = TrialSpec(trial.key, trial.experiment, TrialFolder(tmp_path), "data", "a:train", "now", user_code=began)
    module.write_text(COST.format(2))  # while the sweep runs
    with pytest.raises(UserError, match=r"field_mid_sweep\.py\) differs from the code at the command's start") as error:
        train_fn_per_worker(spec)
    assert not may_pass(error.value)  # trying again would find the same


def test_the_report_says_that_changed_code_was_accepted(tmp_path: Path, module: Path, with_store) -> None:
    output = with_store(tmp_path / "o")
    sample = experiment("mixed", arms=("per_token", ARM), seeds=(0, 1))
    tracker = Tracker(output.tracking_uri, "tests", output.artifacts)
    for number, trial in enumerate(trials_of(sample)):
        folder = output.trial("mixed", trial.key)
        named = trial.experiment.model_copy(
            update={"training": trial.experiment.training.model_copy(update={"arm": "per_token"})}
        )
        leave(trial.model_copy(update={"experiment": named}), folder, "FINISHED")
        module.write_text(COST.format(number))
        note_attempt(folder, 1, "session", trial.experiment)
        tracker.start_trial(folder, trial, "mixed", EXTRA, "FINISHED")
    assert not tracker.close("FINISHED")
    made = make_report(output.tracking_uri, "tests", "mixed")
    (told,) = [words for words in made.findings if "--accept-changed-code" in words]
    assert told.startswith(f"The code of {ARM} changed during the sweep")
    assert "seed 0 with " in told
    assert "; seed 1 with " in told
