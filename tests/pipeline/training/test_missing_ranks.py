"""Who is named when a collective operation fails. With two real processes it is in test_evidence and the drills."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.storage.opening import open_storage
from pipeline.storage.storage import Storage
from pipeline.training.missing_ranks import naming_missing_ranks
from pipeline.training.stopping import MissingRanks

TIMED_OUT = RuntimeError("callback:\n[/x/gloo/gloo/buffer.cc:81] Timed out waiting 10000ms\nException raised from: y")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def marks(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "marks"))


@pytest.mark.usefixtures("group")
def test_who_has_left_no_mark_is_named(marks: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    (marks / "rank-2").write_bytes(b"here")
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr("pipeline.training.missing_ranks._FOR_MARKS_S", 0.3)
    with pytest.raises(MissingRanks) as caught, naming_missing_ranks(marks):
        raise TIMED_OUT
    assert str(caught.value) == "rank 1, 3 did not arrive where the others waited (Timed out waiting 10000ms)"
    assert (marks / "rank-0").is_file()


@pytest.mark.usefixtures("group")
def test_no_rank_is_blamed_when_all_were_there(marks: Storage) -> None:
    with pytest.raises(MissingRanks, match="although no rank was missing"), naming_missing_ranks(marks):
        raise TIMED_OUT


@pytest.mark.usefixtures("group")
def test_other_errors_pass_as_they_are(marks: Storage) -> None:
    for error in (RuntimeError("shapes do not match"), ValueError("gloo")):
        with pytest.raises(type(error), match=str(error)), naming_missing_ranks(marks):
            raise error
    assert marks.files() == {}


def test_without_other_workers_no_rank_can_be_missing(marks: Storage) -> None:
    with pytest.raises(RuntimeError, match="gloo"), naming_missing_ranks(marks):
        raise TIMED_OUT
