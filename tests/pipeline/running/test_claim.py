"""A folder belongs to one experiment, and to one process at a time."""

import errno
import fcntl
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pipeline.running.sweep
from pipeline.errors import UserError
from pipeline.files import read_json, write_whole
from pipeline.layout import Output, TrialFolder
from pipeline.records.lock import folder_lock
from pipeline.running.claim import claim
from pipeline.running.run_options import RunOptions
from pipeline.running.sweep import run_sweep
from pipeline.settings.config import SweepConfig, TrainingConfig
from pipeline.settings.trials import every_trial, trials_of
from tests.pipeline.toy_training import RecordingTracker, toy_data, toy_experiment, toy_train

COMMAND = "tiny-onn ablate toy.yaml"


def test_another_experiment_of_the_same_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    claim(tmp_path, toy_experiment(), "aa", False, COMMAND)
    other = toy_experiment(training=TrainingConfig(steps=3, warmup_steps=2, batch_tokens=64))
    with pytest.raises(UserError) as refused:
        claim(tmp_path, other, "aa", True, COMMAND)
    assert "  training.warmup_steps: there 1, now 2\n" in str(refused.value)
    assert "training.seed" not in str(refused.value)
    assert f"remove that folder (with --storage, sweeps/{tmp_path.name} in it too" in str(refused.value)


def test_other_data_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, toy_experiment(), "aa", False, COMMAND)
    with pytest.raises(UserError, match='data_hash: there "aa", now "bb"'):
        claim(tmp_path, toy_experiment(), "bb", True, COMMAND)


def test_the_same_experiment_goes_on_only_when_asked(tmp_path: Path) -> None:
    claim(tmp_path, toy_experiment(), "aa", False, COMMAND)
    with pytest.raises(UserError, match=f"{COMMAND} --resume"):
        claim(tmp_path, toy_experiment(), "aa", False, COMMAND)
    claim(tmp_path, toy_experiment(), "aa", True, COMMAND)


def test_what_changes_no_result_may_differ(tmp_path: Path) -> None:
    arms = ("task_only",)
    claim(tmp_path, toy_experiment(sweep=SweepConfig(arms=arms, seeds=(0,))), "aa", False, COMMAND)
    sweep = SweepConfig(arms=arms, seeds=(0,), max_concurrent=1)
    claim(tmp_path, toy_experiment(sweep=sweep, description="said better"), "aa", True, COMMAND)


def test_a_record_from_before_there_was_a_setting_means_what_was_then(tmp_path: Path) -> None:
    claim(tmp_path, toy_experiment(), "aa", False, COMMAND)
    record = read_json(tmp_path / "sweep.json")
    assert record["experiment"]["training"].pop("schedule") == "linear"
    write_whole(tmp_path / "sweep.json", json.dumps(record))
    claim(tmp_path, toy_experiment(), "aa", True, COMMAND)
    training = toy_experiment().training.model_copy(update={"schedule": "constant"})
    with pytest.raises(UserError, match=r'training\.schedule: there "linear", now "constant"'):
        claim(tmp_path, toy_experiment(training=training), "aa", True, COMMAND)


@pytest.mark.parametrize("text", ["{", "", "[]", "{}"])
def test_a_damaged_record_is_refused_and_nothing_done_need_be_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"not JSON that names the experiment of .* remove this file alone"):
        claim(tmp_path, toy_experiment(), "aa", True, COMMAND)


def test_what_the_cluster_refuses_leaves_the_name_and_the_tracker_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a setting that was mended would be refused as another experiment's, until the folder is removed."""

    @contextmanager
    def lacking(*_: Any) -> Iterator[Any]:
        time.sleep(4)  # longer than the courier takes for a round
        raise UserError("workers.cpus: too few")
        yield

    def try_it(steps: int, resume: bool) -> None:
        experiment = toy_experiment(training=TrainingConfig(steps=steps, warmup_steps=1, batch_tokens=64))
        with pytest.raises(UserError, match="too few"):
            run_sweep(
                experiment,
                trials_of(experiment),
                toy_data(tmp_path / "data"),
                RunOptions(
                    Output(tmp_path),
                    resume=resume,
                    command=COMMAND,
                    address="127.0.0.1:1",
                    console=Console(file=io.StringIO()),
                ),
                train_fn=toy_train,
                tracker=tracker,
            )

    monkeypatch.setattr(pipeline.running.sweep, "connect", lacking)
    tracker = RecordingTracker()
    try_it(4, False)
    try_it(3, False)
    assert tracker.calls == []
    folder = Output(tmp_path).sweep("toy")
    claim(folder, toy_experiment(), toy_data(tmp_path / "data").manifest.data_hash, False, COMMAND)
    try_it(3, True)
    assert (folder / "sweep.json").exists()  # it was an earlier command's


def test_without_a_record_the_trials_say_whose_the_folder_is(tmp_path: Path) -> None:
    mine = toy_experiment()
    trial = every_trial(mine)[0]
    folder = TrialFolder(tmp_path / "trials" / trial.key)
    write_whole(folder.result, "{}")
    with pytest.raises(UserError, match=r"has no config\.json that says its settings, and .*sweep\.json is gone"):
        claim(tmp_path, mine, "aa", True, COMMAND)
    write_whole(folder.config, trial.experiment.model_dump_json())
    with pytest.raises(UserError, match=f"{COMMAND} --resume"):
        claim(tmp_path, mine, "aa", False, COMMAND)
    other = toy_experiment(training=TrainingConfig(steps=4, warmup_steps=1, batch_tokens=64))
    with pytest.raises(UserError, match=r"training\.steps: 3 before, 4 now"):
        claim(tmp_path, other, "aa", True, COMMAND)
    swept = toy_experiment(sweep=SweepConfig(arms=("task_only",), seeds=(7,)))
    with pytest.raises(UserError, match="is no trial of this experiment"):
        claim(tmp_path, swept, "aa", True, COMMAND)
    assert not (tmp_path / "sweep.json").exists()
    claim(tmp_path, mine, "aa", True, COMMAND)
    assert read_json(tmp_path / "sweep.json")["experiment"] == mine.model_dump(mode="json")


def test_a_disk_made_ready_for_checkpoints_is_no_trial_begun(tmp_path: Path) -> None:
    mine = toy_experiment()
    TrialFolder(tmp_path / "trials" / every_trial(mine)[0].key).checkpoints.mkdir(parents=True)
    assert claim(tmp_path, mine, "aa", False, COMMAND)


def test_a_folder_in_use_names_who_uses_it(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path),
        pytest.raises(UserError, match=f"process {os.getpid()} on {socket.gethostname()}"),
        folder_lock(tmp_path),
    ):
        pass
    with folder_lock(tmp_path):  # free again
        assert read_json(tmp_path / "lock")["pid"] == os.getpid()


def test_a_folder_that_cannot_be_written_to_has_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=f"^{folder}/lock: cannot be written"), folder_lock(folder):
            pass


def test_a_file_system_without_locks_is_not_taken_for_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(UserError, match=r"lock: cannot be locked \(Function not implemented\)"), folder_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\nfrom pipeline.records.lock import folder_lock\n"
        "with folder_lock(pathlib.Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[3], check=False)
    assert killed.returncode == -9
    assert read_json(tmp_path / "lock")["pid"] != os.getpid()
    with folder_lock(tmp_path):
        assert read_json(tmp_path / "lock")["pid"] == os.getpid()
