"""What is noted of each attempt, and that other code is told of."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.layout import Output
from pipeline.records.attempts import noted_attempts as attempts
from pipeline.running import provenance
from pipeline.running.outcome import print_start
from pipeline.running.progress import TrialProgress
from pipeline.running.provenance import note_attempt, sources, with_other_code
from pipeline.settings.trials import trials_of
from tests.pipeline.toy_training import toy_experiment


def test_code_and_settings_of_each_attempt_are_kept_and_changes_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = toy_experiment()
    progress = [TrialProgress(trial, Output(tmp_path).trial("toy", trial.key)) for trial in trials_of(experiment)]
    folder = progress[0].folder
    folder.root.mkdir(parents=True)
    assert not with_other_code(folder)
    note_attempt(folder, 1, "a", progress[0].trial.experiment)
    with folder.attempts.open("a") as file:
        file.write('{"attempt": 2, "ses')  # the machine went down
    assert not with_other_code(folder)
    first = attempts(folder)
    assert [(each["attempt"], each["sources"]) for each in first] == [(1, sources())]
    assert first[0]["packages"]["torch"]

    monkeypatch.setattr(provenance, "sources", lambda: "another")
    assert with_other_code(folder)
    screen = io.StringIO()
    print_start("toy", progress, progress, Console(file=screen))
    assert "The code has changed since per_token-s0 last ran" in screen.getvalue()
    told = progress[0].trial.experiment
    changed = told.training.model_copy(update={"steps": told.training.steps + 1})
    note_attempt(folder, 2, "b", told.model_copy(update={"training": changed}))
    assert [each["sources"] for each in attempts(folder)] == [sources(), "another"]
    assert len({each["settings"] for each in attempts(folder)}) == 2
    assert not with_other_code(folder)


def test_the_sources_hash_changes_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pipeline").mkdir()
    code = tmp_path / "pipeline" / "a.py"
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "pipeline" / "running" / "provenance.py"))
    hashes = []
    for text in ("x = 1", "x = 2", "x = 1"):
        code.write_text(text)
        sources.cache_clear()
        hashes.append(sources())
    sources.cache_clear()
    assert hashes[0] == hashes[2] != hashes[1]
