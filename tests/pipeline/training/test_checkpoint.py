"""Checkpoints under everything that a disk, a kill and a stranger can do to them."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.training import checkpoint
from pipeline.training.build import build_dynamics, build_model
from pipeline.training.checkpoint import (
    checkpoints,
    load_newest,
    newest_whole,
    note_verified,
    read_checkpoint,
    save_checkpoint,
)
from tests.pipeline.samples import small_experiment
from tests.pipeline.save_for_ever import dynamics_at
from tiny_onn.dynamics import LearningDynamics

DIGEST = "0123456789abcdef"


def fresh() -> LearningDynamics:
    experiment = small_experiment()
    return build_dynamics(build_model(experiment), experiment.training)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (4, 6, 8):
        save_checkpoint(folder, step, dynamics_at(step), DIGEST, keep=3)
    return folder


@pytest.fixture
def folder(three: Path, tmp_path: Path) -> Path:
    shutil.copytree(three, tmp_path / "c")
    return tmp_path / "c"


def value_of(dynamics: LearningDynamics) -> float:
    """The number that `dynamics_at` filled all parameters and moments with."""
    values = {float(v) for p in dynamics.model.parameters() for v in (p.detach().min(), p.detach().max())}
    state = dynamics.computation_optimizer.state
    values |= {float(v) for slots in state.values() for v in (slots["exp_avg"].min(), slots["exp_avg"].max())}
    assert len(values) == 1
    return values.pop()


def test_the_newest_is_loaded_whole(folder: Path) -> None:
    dynamics = fresh()
    assert load_newest(folder, dynamics, DIGEST) == (8, [])
    assert value_of(dynamics) == 8
    assert newest_whole(folder, DIGEST) == 8


def test_a_bad_checkpoint_falls_back_and_all_bad_is_an_error(folder: Path) -> None:
    saved = checkpoints(folder)
    state = saved[-1] / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    dynamics = fresh()
    step, problems = load_newest(folder, dynamics, DIGEST)
    assert step == value_of(dynamics) == 6
    assert "step-000008" in problems[0]
    assert "sha256" in problems[0]
    (saved[1] / "manifest.json").unlink()
    assert load_newest(folder, fresh(), DIGEST)[0] == 4
    with pytest.raises(UserError, match="belongs to experiment"):
        load_newest(folder, fresh(), "another")
    (saved[0] / "state.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint can be used"):
        load_newest(folder, fresh(), DIGEST)
    assert newest_whole(folder, DIGEST) is None
    assert load_newest(folder / "none", fresh(), DIGEST) == (0, [])


@given(data=st.data())
def test_any_flipped_bit_is_noticed(three: Path, data: st.DataObject) -> None:
    """Every bit of the manifest, and of the state its header's length, its header and its tensors."""
    name = data.draw(st.sampled_from(["manifest.json", "state.safetensors"]))
    target = three.parent / f"{three.name}-flipped" / "step-000008"
    shutil.rmtree(target.parent, ignore_errors=True)
    shutil.copytree(three / "step-000008", target)
    raw = bytearray((target / name).read_bytes())
    header = int.from_bytes(raw[:8], "little")
    regions = [(0, 7), (8, 8 + header - 1), (8 + header, len(raw) - 1)] if name == "state.safetensors" else []
    first, last = data.draw(st.sampled_from(regions or [(0, len(raw) - 1)]))
    raw[data.draw(st.integers(first, last))] ^= 1 << data.draw(st.integers(0, 7))
    (target / name).write_bytes(raw)
    try:
        step, state = read_checkpoint(target, DIGEST)
    except UserError:
        return
    before = json.loads((three / "step-000008" / "manifest.json").read_text())  # white space may become other such
    assert json.loads((target / "manifest.json").read_text()) == before
    assert step == 8
    assert all(float(t.min()) == 8 for name, t in state.items() if name.startswith("model/"))


def test_every_bit_of_the_manifest_alone(folder: Path) -> None:
    path = folder / "step-000008" / "manifest.json"
    good = path.read_bytes()
    parsed = json.loads(good)
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            path.write_bytes(bad)
            try:
                read_checkpoint(folder / "step-000008", DIGEST)
            except UserError:
                continue
            assert json.loads(bad) == parsed


@pytest.mark.parametrize(
    "manifest", ["", "[]", "null", "{}", "[" * 100_000, '{"schema_version": 2, "step": 1e999}', "\0"]
)
def test_what_is_no_manifest_is_refused(folder: Path, manifest: str) -> None:
    (folder / "step-000008" / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="step-000008"):
        read_checkpoint(folder / "step-000008")


def seal(target: Path, **changes: object) -> None:
    """Has the manifest vouch for whatever is there, as a stranger would who knows the format."""
    manifest = json.loads((target / "manifest.json").read_text()) | changes
    del manifest["manifest_sha256"]
    state = (target / "state.safetensors").read_bytes()
    manifest["sha256"]["state.safetensors"] = hashlib.sha256(state).hexdigest()
    own = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (target / "manifest.json").write_text(json.dumps({**manifest, "manifest_sha256": own}))


def test_a_pickle_in_place_of_a_checkpoint_is_never_loaded(folder: Path, tmp_path: Path) -> None:
    class Malice:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "owned",))

    target = folder / "step-000008"
    torch.save({"model": Malice()}, target / "state.safetensors")
    seal(target)
    torch.save({"model": Malice()}, folder / "step-000009")  # a file where a folder should be
    (folder / "step-000010").mkdir()
    torch.save({"model": Malice()}, folder / "step-000010" / "state.pt")
    step, problems = load_newest(folder, fresh(), DIGEST)
    assert step == 6
    assert ["step-000010" in problems[0], "step-000008" in problems[1]] == [True, True]
    assert "damaged" in problems[1]
    assert not (tmp_path / "owned").exists()
    torch.load(io.BytesIO((target / "state.safetensors").read_bytes()), weights_only=False)
    assert (tmp_path / "owned").exists()  # it would have been


def test_a_checkpoint_under_another_name_or_schema_is_refused(folder: Path) -> None:
    (folder / "step-000008").rename(folder / "step-000012")
    assert "renamed" in load_newest(folder, fresh(), DIGEST)[1][0]
    seal(folder / "step-000006", schema_version=1)
    step, problems = load_newest(folder, fresh(), DIGEST)
    assert step == 4
    assert "schema version 1, expected 2" in problems[1]


def test_a_checkpoint_of_another_shape_of_model_or_optimiser_is_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    good = load_file(folder / "step-000008" / "state.safetensors")
    bad = {
        "fewer weights": {name: t for name, t in good.items() if name != "model/head.weight"},
        "other weights": good | {"model/head.weight": torch.zeros(2, 2)},
        "other moments": good | {"computation/0/exp_avg_sq": torch.zeros(2, 2)},
        "no such parameter": good | {"router/999/exp_avg": torch.zeros(2, 2)},
    }
    for what, state in bad.items():
        save_file(state, folder / "step-000008" / "state.safetensors")
        seal(folder / "step-000008")
        dynamics = fresh()
        step, problems = load_newest(folder, dynamics, DIGEST)
        assert step == value_of(dynamics) == 6, what
        assert "does not fit" in problems[0], what


def test_only_the_newest_are_kept_and_none_that_proved_bad(folder: Path) -> None:
    (folder / "step-000008" / "manifest.json").write_text("{")
    assert load_newest(folder, fresh(), DIGEST)[0] == 6
    save_checkpoint(folder, 7, dynamics_at(7), DIGEST, keep=1)  # the bad one is newer, and must not be what is kept
    assert [path.name for path in checkpoints(folder)] == ["step-000007"]
    save_checkpoint(folder, 1_000_000, dynamics_at(1), DIGEST, keep=2)
    save_checkpoint(folder, 1_000_001, dynamics_at(2), DIGEST, keep=2)
    assert [path.name for path in checkpoints(folder)] == ["step-1000000", "step-1000001"]


def test_a_step_saved_again_takes_the_place_of_the_first(folder: Path) -> None:
    save_checkpoint(folder, 8, dynamics_at(80), DIGEST, keep=3)
    dynamics = fresh()
    assert load_newest(folder, dynamics, DIGEST) == (8, [])
    assert value_of(dynamics) == 80
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000006", "step-000008"]


@pytest.mark.parametrize("fails", ["write_tensors", "write_text", "fsync"])
def test_a_full_disk_leaves_what_there_was(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if fails == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif fails == "write_text":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, 10, dynamics_at(10), DIGEST, keep=1)
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000006", "step-000008"]
    assert load_newest(folder, fresh(), DIGEST) == (8, [])


def run_saver(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Saves step 1, 2, 3, ... in a process of its own, and prints each."""
    command = [sys.executable, "-m", "tests.pipeline.save_for_ever", str(folder), DIGEST, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_limit_of_the_system_on_writing_leaves_the_last_whole_one(tmp_path: Path) -> None:
    """The limit falls after step 3; the library writes into a map of the file, which must not be its end either."""
    saver = run_saver(tmp_path / "c", "--limit-after", "3")
    out, err = saver.communicate(timeout=60)
    assert saver.returncode == 3, (out, err)
    assert "OSError" in out.splitlines()[-1]
    dynamics = fresh()
    assert load_newest(tmp_path / "c", dynamics, DIGEST) == (3, [])
    assert value_of(dynamics) == 3
    assert not list((tmp_path / "c").glob(".*"))


def test_a_kill_in_the_middle_of_saving_leaves_a_whole_one(tmp_path: Path) -> None:
    chance = random.Random(0)
    folder = tmp_path / "c"
    for _ in range(4):
        before = load_newest(folder, fresh(), DIGEST)[0]
        saver = run_saver(folder)
        assert saver.stdout is not None
        for _ in range(chance.randint(2, 4)):
            saver.stdout.readline()
        time.sleep(chance.uniform(0, 0.02))
        os.kill(saver.pid, signal.SIGKILL)
        rest, _ = saver.communicate(timeout=60)
        dynamics = fresh()
        step, problems = load_newest(folder, dynamics, DIGEST)
        assert problems == []
        assert step == value_of(dynamics)
        told = [int(line) for line in rest.split()]
        assert step > before
        assert not told or step >= told[-1]


def test_what_a_kill_left_half_written_is_never_read_and_goes_with_the_next(folder: Path) -> None:
    half = folder / ".step-000010.4711"
    shutil.copytree(folder / "step-000008", half)
    (half / "manifest.json").unlink()
    (folder / "step-000008").rename(folder / ".step-000008.replaced")  # killed between the two renames
    assert load_newest(folder, fresh(), DIGEST) == (6, [])
    save_checkpoint(folder, 8, dynamics_at(8), DIGEST, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000006", "step-000008"]


def test_what_was_hashed_as_it_arrived_is_not_hashed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, hashed = folder / "step-000008", []
    sha256 = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: hashed.append(path.parent.name) or sha256(path))
    note_verified(target, sha256(target / "state.safetensors"))
    assert newest_whole(folder, DIGEST) == 8
    assert load_newest(folder, fresh(), DIGEST) == (8, [])
    assert hashed == []
    state = bytearray((target / "state.safetensors").read_bytes())
    state[-1] ^= 1
    (target / "state.safetensors").write_bytes(state)  # a later change of the file: the note no longer holds
    assert newest_whole(folder, DIGEST) == load_newest(folder, fresh(), DIGEST)[0] == 6
    assert hashed == ["step-000008", "step-000006"] * 2


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"sha256": null}', '{"sha256": "0"}', "x" * 5000])
def test_a_note_of_another_hash_or_a_damaged_one_vouches_for_nothing(folder: Path, note: str) -> None:
    note_verified(folder / "step-000008", "0" * 64)
    step, problems = load_newest(folder, fresh(), DIGEST)
    assert (step, "sha256 000000000000" in problems[0]) == (6, True)
    state = folder / "step-000008" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    (folder / "step-000008" / "verified.json").write_text(note)
    assert load_newest(folder, fresh(), DIGEST)[0] == newest_whole(folder, DIGEST) == 6
