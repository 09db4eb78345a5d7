"""How far a delivery has come: what is written, what an older version wrote, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.records.delivery import OLDER_FILE, DeliveryState, delivery_state, read_delivery, write_delivery

KEY, RUN = 32 * "a", 32 * "b"
WHOLE = {"creation_key": KEY, "run_id": RUN, "offset": 7, "figures": ["step-000010.safetensors"], "ended": "FINISHED"}
STATE = DeliveryState(KEY, RUN, 7, ["step-000010.safetensors"], "FINISHED")


def put(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(json.dumps(value))
    return folder / name


def test_what_is_written_is_read_and_takes_the_place_of_an_older_versions_file(tmp_path: Path) -> None:
    path = tmp_path / "mlflow_run.json"
    put(tmp_path, OLDER_FILE, {"run_id": RUN, "offset": 3, "figures": [], "ended": None})
    assert read_delivery(path) is None
    write_delivery(path, STATE)
    assert json.loads(path.read_text()) == WHOLE
    assert read_delivery(path) == STATE
    assert [each.name for each in tmp_path.iterdir()] == ["mlflow_run.json"]


def test_the_two_files_of_an_older_version_are_one_state(tmp_path: Path) -> None:
    path = put(tmp_path, "mlflow_run.json", {"creation_key": KEY, "run_id": RUN, "described": RUN})
    assert read_delivery(path) == DeliveryState(KEY, RUN)
    shipped = {name: WHOLE[name] for name in ("run_id", "offset", "figures", "ended")}
    older = put(tmp_path, OLDER_FILE, shipped)
    assert read_delivery(path) == STATE
    put(tmp_path, OLDER_FILE, {**shipped, "run_id": 32 * "c"})  # of another store's run
    assert read_delivery(path) == DeliveryState(KEY, RUN)
    older.write_text("{")
    assert read_delivery(path) == DeliveryState(KEY, RUN)
    put(tmp_path, OLDER_FILE, shipped)
    put(tmp_path, "mlflow_run.json", {**WHOLE, "offset": 9})  # what was written since counts alone
    assert read_delivery(path) == DeliveryState(KEY, RUN, 9, STATE.figures, "FINISHED")


def test_a_run_that_was_not_described_has_nothing(tmp_path: Path) -> None:
    assert read_delivery(put(tmp_path, "a.json", {"creation_key": KEY})) == DeliveryState(KEY)
    half = {"creation_key": KEY, "run_id": RUN, "described": 32 * "c"}
    assert read_delivery(put(tmp_path, "b.json", half)) == DeliveryState(KEY)


def test_another_run_has_been_sent_nothing() -> None:
    state = DeliveryState(KEY, RUN, 7, ["step-000010.safetensors"], "FINISHED")
    state.belongs_to(RUN)
    assert state == STATE
    state.belongs_to(32 * "c")
    assert state == DeliveryState(KEY, 32 * "c")


@pytest.mark.parametrize(
    "change",
    [
        {"creation_key": "x' OR 1"},
        {"creation_key": None},
        {"run_id": "../x"},
        {"described": 3},
        {"offset": -1},
        {"offset": True},
        {"figures": ["../step-000001.safetensors"]},
        {"figures": "step"},
        {"ended": "RUNNING"},
        {"more": 1},
    ],
)
def test_other_shapes_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of them
        delivery_state({**WHOLE, **change})
    assert read_delivery(put(tmp_path, "mlflow_run.json", {**WHOLE, **change})) is None
