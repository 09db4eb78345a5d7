"""What is refused before anything starts, tried by the command itself: exit code 2, a message, nothing begun."""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.data.manifest import SCHEMA_VERSION
from pipeline.data.shards import prepare
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.records.lock import folder_lock
from pipeline.running.claim import claim
from pipeline.settings.experiment_file import read_experiment
from tests.pipeline.arc_samples import random_task, write_tasks
from tests.pipeline.toy_training import RecordingTracker

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def no_early_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would start beside some refusals, and be stopped again: `running/test_early_start` tries that."""
    monkeypatch.setattr("pipeline.run.EarlyStart", lambda *_: nullcontext())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An experiment on forty small tasks in a folder."""
    write_tasks(tmp_path / "tasks", [random_task(f"t{i:02d}", i) for i in range(40)])
    settings = {
        "name": "try",
        "data": {"dataset": "folder", "folder": str(tmp_path / "tasks"), "max_tokens": 200, "dihedral_views": 2},
        "model": {"hidden": 8, "layers": 1, "heads": 2},
        "training": {"steps": 4, "warmup_steps": 1, "batch_tokens": 1000, "compile": "eager"},
        "workers": {"cpus": 0.5},
        "sweep": {"arms": ["per_token"], "seeds": [0]},
    }
    path = tmp_path / "try.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def command(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`tiny-onn train`, without a tracker, where a start of Ray would fail the test."""

    def no_ray(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pipeline.running.sweep.connect", no_ray)
    monkeypatch.setattr("pipeline.planning.preflight.Tracker", lambda *_: RecordingTracker())

    def run(*words: str, name: str = "train", output: Path = tmp_path / "out") -> Result:
        return CliRunner().invoke(main, [name, str(config), "--output", str(output), *words])

    return run


def refused(result: Result, *messages: str) -> None:
    """Asserts that the command ended with exit code 2 and said all of `messages`."""
    assert result.exit_code == 2, (result.output, result.exception)
    for message in messages:
        assert message in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.step=10", "'training.step' is no setting (did you mean 'training.steps'?)"),
        ("training.arm=per_tokn", "training.arm: unknown arm 'per_tokn' (did you mean 'per_token'?)"),
        ("training.arm=nosuch:cost", "training.arm: 'nosuch:cost' cannot be used"),
        ("training.arm=json:dumps", "is a function; expected one of Arm, TokenCost, LayerCost"),
        ("training.engine=fusd", "'hooks' (did you mean 'fused'?)"),
        ("data.dataset=arc-agi2", "(did you mean 'arc-agi-2'?)"),
        ("training.steps=ten", "training.steps: found 'ten'; input should be a valid integer"),
        ("training.steps=[1, 2", "--set training.steps, line 1: "),
        ("training.steps", "expected FIELD=VALUE"),
        ("model.layers=-1", "model.layers: found -1"),
        ("model.hidden=6", "model.hidden=6 cannot be cut into 2 heads of even width, as RoPE needs; nearest: hidden=4"),
        ("workers.count=30", "use batch_tokens >= 6000"),
        ("workers.cpus=1000", "workers.cpus: a trial asks for 1000 CPUs"),
        ("workers.gpus=64", "workers.gpus: a trial asks for 64 GPUs"),
        ("name=../out", "name: found '../out'; expected 1 to 64 letters, digits"),
        ("data.folder=/nowhere", "data.folder: /nowhere is not there"),
        ("data.max_tokens=16", "40 tasks, all longer than 16 tokens; the shortest has "),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_starts(
    command: Command, tmp_path: Path, change: str, message: str
) -> None:
    refused(command("--set", change), message)
    assert not (tmp_path / "out" / "sweeps").exists()


def test_more_ranks_than_rows_are_refused_before_anything_starts(command: Command, tmp_path: Path) -> None:
    many = ("workers.count=100", "workers.cpus=0.001", "training.batch_tokens=20000")
    refused(command(*(word for change in many for word in ("--set", change))), "are too few for 100 ranks")
    assert not (tmp_path / "out" / "sweeps").exists()


def test_a_cell_of_the_grid_that_does_not_fit_is_refused_before_the_others_run(command: Command) -> None:
    result = command("--set", "sweep.grid={workers.cpus: [0.5, 999]}", name="ablate")
    refused(result, "workers.cpus: a trial asks for 999 CPUs")


def test_a_place_that_cannot_be_written_to_is_refused(command: Command, config: Path) -> None:
    refused(command(output=config), f"--output {config}: cannot be used")


def test_a_disk_without_room_for_the_checkpoints_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=99e6))
    refused(command(), "99 MB are free, but 100 MB may be needed")


def test_a_head_that_does_not_answer_is_refused_before_anything_is_tracked(command: Command, tmp_path: Path) -> None:
    refused(command("--address", "127.0.0.1:9"), "address 127.0.0.1:9: nothing answers")
    assert not (tmp_path / "out" / "sweeps").exists()


def test_a_tracking_address_where_nothing_answers_is_refused_in_seconds(config: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}"
        import mlflow  # noqa: F401 - its import, of seconds on a busy machine, is not what is timed

        began = time.monotonic()
        result = CliRunner().invoke(
            main, ["train", str(config), "--output", str(tmp_path / "out"), "--tracking-uri", uri]
        )
    refused(result, "tracking URI http://user:***@127.0.0.1", "cannot be used", "add --allow-offline-tracking")
    assert "secret" not in result.output
    assert time.monotonic() - began < 10
    assert not (tmp_path / "out" / "data").exists()  # known before any work is done


@pytest.mark.parametrize("uri", ["foo://x", "mysql://u:secret@127.0.0.1:9/x", "sqlite:///{folder}/try.yaml"])
def test_what_is_no_tracking_store_is_refused(config: Path, tmp_path: Path, uri: str) -> None:
    words = ["train", str(config), "--output", str(tmp_path / "out"), "--tracking-uri", uri.format(folder=tmp_path)]
    result = CliRunner().invoke(
        main, [*words, "--allow-offline-tracking"]
    )  # which helps only where something may come back
    refused(result, "tracking URI", "cannot be used")
    assert "secret" not in result.output


def test_a_folder_that_another_live_sweep_uses_is_refused(command: Command, tmp_path: Path) -> None:
    with folder_lock(Output(tmp_path / "out").sweep("try")):
        refused(command(), f"in use by process {os.getpid()} on {socket.gethostname()}")


def test_a_run_resumed_with_another_config_is_refused_with_the_difference(
    command: Command, config: Path, tmp_path: Path
) -> None:
    output = Output(tmp_path / "out")
    experiment = read_experiment(config).model_copy(update={"sweep": None})
    prepared = prepare(experiment.data, output.data)
    claim(output.sweep("try"), experiment, prepared.manifest.data_hash, False, "")
    refused(command("--resume", "--set", "training.learning_rate=0.5"), "training.learning_rate: there 0.003, now 0.5")
    refused(command("--set", "training.steps=4"), "--set training.steps=4 --output", "--resume")
    write_tasks(tmp_path / "tasks", [random_task("more", 99)])
    refused(command("--resume"), "data_hash: there ")


@pytest.mark.parametrize("name", ["../out", "a/b", "", "."])
def test_a_report_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    refused(CliRunner().invoke(main, ["report", name, "--output", str(tmp_path)]), "SWEEP: found ", "it names a folder")


def test_data_of_another_schema_version_is_not_used(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`open_prepared`, by which workers read, refuses it; the command says so and writes the data anew."""
    data = read_experiment(config).data
    manifest = prepare(data, tmp_path / "out" / "data").folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 7'))
    result = CliRunner().invoke(main, ["prepare", str(config), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert f"schema_version is 7; expected {SCHEMA_VERSION}" in caplog.text
    assert json.loads(manifest.read_text())["schema_version"] == SCHEMA_VERSION


def test_one_bad_file_is_reported_and_counted_and_the_others_are_prepared(config: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    bad = {
        "torn": '{"train": [',
        "list": "[]",
        "ragged": '{"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": []}',
        "empty": '{"train": [{"input": [], "output": [[1]]}], "test": []}',
        "large": json.dumps({"train": [{"input": [[0] * 31], "output": [[1]]}], "test": []}),
        "colour": '{"train": [{"input": [[10]], "output": [[1]]}], "test": []}',
        "bool": '{"train": [{"input": [[true]], "output": [[1]]}], "test": []}',
        "float": '{"train": [{"input": [[1.0]], "output": [[1]]}], "test": []}',
        "unknown": '{"train": [{"input": [[1]], "output": [[1]]}], "test": [{"input": [[1]]}]}',
    }
    words = ["prepare", str(config), "--output", str(tmp_path / "out")]
    assert "refused" not in CliRunner().invoke(main, words).output
    for name, text in bad.items():
        (tasks / f"{name}.json").write_text(text)
    os.mkfifo(tasks / "pipe.json")
    (tasks / "folder.json").mkdir()  # a folder like any other
    (Path(os.fsdecode(os.fsencode(tasks) + b"/\xff.json"))).write_text("{}")
    (tasks / "huge.json").write_bytes(b" " * 64_000_001)
    result = CliRunner().invoke(main, words)  # the usable tasks are the same, so no shard is written anew
    assert result.exit_code == 0, result.output
    assert "12 files refused, the rest prepared; all of them in " in result.output
    (manifest,) = (tmp_path / "out" / "data").glob("folder-*/manifest.json")
    told = json.loads(manifest.read_text())
    assert told["counts"]["train"]["tasks"] + told["counts"]["held_out"]["tasks"] == 40
    assert len(told["refused"]) == 12
    for name in (*bad, "pipe", "\\udcff", "huge"):
        assert any(f"{name}.json" in reason for reason in told["refused"]), name
    assert f"{tasks / 'bool.json'}: task bool, train pair 0, input, cell (row 0, column 0): found true" in result.output
    for path in tasks.iterdir():
        if path.name.startswith("t") and path.name != "torn.json":
            path.unlink()
    refused(CliRunner().invoke(main, words), "holds no usable training task", "and 2 more")


def test_tasks_and_views_that_are_too_long_are_counted_on_the_terminal(config: Path, tmp_path: Path) -> None:
    words = ["prepare", str(config), "--output", str(tmp_path / "out"), "--set", "data.max_tokens=60"]
    result = CliRunner().invoke(main, words)
    (manifest,) = (tmp_path / "out" / "data").glob("folder-*/manifest.json")
    counts = json.loads(manifest.read_text())["counts"]["train"]
    assert counts["too_long_tasks"] > 0
    assert f"; {counts['too_long_tasks']} tasks of more than 60 tokens left out" in result.output
    assert counts["too_long_views"] > 0
    assert f"; {counts['too_long_views']} views of other tasks of more than 60 tokens left out" in result.output


def test_who_comes_to_read_makes_no_store(tmp_path: Path) -> None:
    from pipeline.tracking.load_model import load_model

    database = tmp_path / "absent" / "mlflow.db"
    uri = f"sqlite:///{database}"
    for words in (["report", "try"], ["ui"]):
        ran = CliRunner().invoke(main, [*words, "--output", str(tmp_path), "--tracking-uri", uri])
        refused(ran, f"tracking URI {uri}: there is no file {database}")
    with pytest.raises(UserError, match="there is no file"):
        load_model("0123", uri)
    assert not database.parent.exists()


def test_the_error_for_a_damaged_store_explains_how_to_rebuild_it(config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mlflow.db").write_bytes(b"no database" * 100)
    words = ["train", str(config), "--output", str(tmp_path / "out")]
    refused(CliRunner().invoke(main, words), "mlflow.db: cannot be used", "move it away, and `tiny-onn sync` fills")


def test_a_run_that_is_over_says_where_its_model_is(command: Command, config: Path, tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    experiment = read_experiment(config).model_copy(update={"sweep": None})
    claim(output.sweep("try"), experiment, prepare(experiment.data, output.data).manifest.data_hash, False, "")
    folder = output.trial("try", "per_token-s0")
    folder.root.mkdir(parents=True)
    folder.result.write_text("{}")
    folder.delivery.write_text(json.dumps({"creation_key": 32 * "0", "run_id": 32 * "a"}))
    ran = command("--resume")
    assert ran.exit_code == 0, ran.output
    assert f"Model: {folder.model}, MLflow run {32 * 'a'}\nAll measurements: {folder.result}" in ran.output


@pytest.mark.parametrize("words", [[], ["jobs"]])
def test_the_list_of_commands_is_not_cut_short(words: list[str]) -> None:
    told = CliRunner().invoke(main, [*words, "--help"], terminal_width=80).output
    assert "..." not in told.partition("Commands:")[2]


def test_ctrl_c_before_a_sweep_begins_ends_with_130(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.data.preparing.prepare", interrupted)
    ran = CliRunner().invoke(main, ["prepare", str(config), "--output", str(config.parent / "out")])
    assert ran.exit_code == 130
    assert "Stopped by Ctrl-C." in ran.output


def test_data_is_prepared_at_a_scale_that_has_other_data(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["scales"] = {"small": {"data.max_tokens": 60}}
    config.write_text(yaml.safe_dump(settings))
    words = ["prepare", str(config), "--output", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, [*words, "--scale", "small"])
    assert "tasks of more than 60 tokens left out" in ran.output
    refused(CliRunner().invoke(main, [*words, "--scale", "smal"]), "has no scale 'smal' (did you mean 'small'?)")


@pytest.mark.parametrize("name", ["plan", "train", "ablate", "report", "sync", "ui", "server", "prepare"])
def test_an_output_folder_that_is_not_readable_is_refused(config: Path, name: str) -> None:
    folder = "x" * 300  # a name that no file system takes: to root, nothing is forbidden
    words = {"report": ["try"], "sync": [], "ui": [], "server": []}.get(name, [str(config)])
    refused(CliRunner().invoke(main, [name, *words, "--output", folder]), f"--output {folder}: not readable")


def test_a_data_folder_or_a_store_that_is_not_readable_is_refused(command: Command, tmp_path: Path) -> None:
    long = "x" * 300
    refused(command("--set", f"data.folder={long}"), f"data.folder: {long} cannot be read (File name too long)")
    ran = CliRunner().invoke(main, ["report", "try", "--tracking-uri", f"sqlite:///{tmp_path}/{long}"])
    refused(ran, "there is no file")
