"""MLflow's private names: all are there in the pinned version, and without any of them files and points arrive."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import registry
from PIL import Image

from pipeline import mlflow_private
from pipeline.tracking.moved import correct_paths
from pipeline.tracking.store import open_experiment, open_store


@pytest.mark.pinned
def test_the_pinned_version_has_all_names(tmp_path: Path, with_store) -> None:
    assert mlflow_private.missing() == []
    with_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert tuple(mlflow_private.known_path_columns(store)) == mlflow_private.PATH_COLUMNS


@pytest.mark.parametrize("gone", [False, True])
def test_files_go_there_and_come_back(gone: bool, tmp_path: Path, with_store, monkeypatch: pytest.MonkeyPatch) -> None:
    if gone:
        monkeypatch.setattr(mlflow_private, "_REPOSITORY", "a_name_that_is_gone")
    assert bool(mlflow_private.missing()) == gone
    client = open_store(with_store(tmp_path / "out").tracking_uri)
    run_id = client.create_run(open_experiment(client, "x", tmp_path / "out" / "mlflow-artifacts")).info.run_id
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    client.log_artifact(run_id, str(tmp_path / "folder" / "a.txt"))
    client.log_artifacts(run_id, str(tmp_path / "folder"), "below")
    client.log_image(run_id, Image.new("RGB", (2, 2)), key="map", step=7)
    assert {file.path for file in client.list_artifacts(run_id)} == {"a.txt", "below", "images"}
    (tmp_path / "there").mkdir()
    assert Path(client.download_artifacts(run_id, "below/a.txt", str(tmp_path / "there"))).read_text() == "a"
    paths = [file.path for file in client.list_artifacts(run_id, "images")]
    assert mlflow_private.image_steps(paths, "map") == {7}


def test_images_of_another_form_say_nothing() -> None:
    paths = [
        "images/map+step+3+timestamp+1.png",
        "images/map%step%4%x.png",
        "images/map+step+x.png",
        "images/map-5.png",
    ]
    assert mlflow_private.image_steps(paths, "map") == {3, 4}
    assert mlflow_private.image_steps(paths, "ma") == set()


def test_a_store_without_a_registry_is_known_by_the_name_of_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = registry.UnsupportedModelRegistryStoreURIException("x", ["sqlite"])
    monkeypatch.delattr(registry, "UnsupportedModelRegistryStoreURIException")
    assert mlflow_private.is_no_registry(error)
    assert not mlflow_private.is_no_registry(ValueError("x"))
    (said,) = mlflow_private.missing()
    assert "UnsupportedModelRegistryStoreURIException" in said


def test_a_database_with_other_columns_is_left_as_it_is(tmp_path: Path, with_store) -> None:
    database = with_store(tmp_path).root / "mlflow.db"
    with closing(sqlite3.connect(database)) as store, store:
        store.execute("alter table runs rename column artifact_uri to files")
    assert correct_paths(database) == 0
