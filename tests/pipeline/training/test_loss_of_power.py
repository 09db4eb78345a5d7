"""What a trial leaves on the disk would outlive a loss of power in the order in which it is relied on."""

import os
from pathlib import Path

import pytest
import torch

from pipeline.layout import TrialFolder
from pipeline.records.spool import read_spool
from pipeline.training.worker import run_training
from tests.pipeline.samples import small_data, small_experiment


def test_a_checkpoint_comes_after_its_metrics_and_the_result_after_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run goes on from a checkpoint whose metrics are gone for good, or is finished and has no model."""
    flushed: list[tuple[Path, int]] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        flushed.append((Path(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle).st_size))

    data, folder = small_data(tmp_path / "data"), TrialFolder(tmp_path / "trial")
    monkeypatch.setattr(os, "fsync", noted)
    run_training(small_experiment(), folder, data.folder, torch.device("cpu"))
    ends = {line.step: line.end for line in read_spool(folder.spool)[0]}
    spool, seen = 0, {}
    for path, size in flushed:
        if path == folder.spool:
            spool = size
        elif path.name == "state.safetensors":
            seen[int(path.parent.name.split("-")[1].split(".")[0])] = spool
    assert seen == {step: ends[step] for step in (2, 4, 6, 8)}
    paths = [path for path, _ in flushed]
    result = max(place for place, path in enumerate(paths) if path.name.startswith(".result.json."))
    aside = folder.root / ".model.aside"
    for path in folder.model.iterdir():
        assert (aside / path.name, path.stat().st_size) in flushed[:result]
    assert {aside, folder.root} <= {*paths[:result]}
    for snapshot in folder.prototypes.iterdir():
        assert folder.prototypes / f".{snapshot.stem}" in paths
