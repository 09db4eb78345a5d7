"""New SQLite stores are copies of an empty one, and otherwise what MLflow would have made."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.tracking.empty_store import copy_empty, keep_empty, template_file
from pipeline.tracking.store import open_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache whose empty store `open_store` has left there while it made the store beside it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        open_store(f"sqlite:///{cache}/mlflow.db")
        yield cache


@pytest.fixture
def template(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty store, in a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(made))
    kept = template_file()
    assert kept is not None
    assert kept.is_relative_to(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = template_file()
    assert own is not None
    own.parent.mkdir(parents=True)
    own.write_bytes(kept.read_bytes())
    own.chmod(0o600)
    return own


def schema(database: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(database)) as store:
        return sorted(store.execute("select type, name, sql from sqlite_master where name not like 'sqlite_%'"))


def test_a_copy_is_what_mlflow_makes(template: Path, made: Path, tmp_path: Path) -> None:
    database = tmp_path / "here" / "mlflow.db"
    database.parent.mkdir()
    assert copy_empty(database)
    client = open_store(f"sqlite:///{database}")
    assert schema(database) == schema(made / "mlflow.db")
    (default,) = client.search_experiments()
    assert (default.experiment_id, default.name) == ("0", "Default")
    run = client.create_run(client.create_experiment("mine"))
    client.log_metric(run.info.run_id, "loss", 0.5)
    assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}


def test_the_default_experiment_lies_where_the_copy_was_made(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(template)) as store:
        assert store.execute("select count(*) from experiments").fetchone() == (0,)
    monkeypatch.chdir(tmp_path)
    (default,) = open_store(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
    assert default.artifact_location == str(tmp_path / "mlruns" / "0")


def damage(template: Path) -> None:
    template.write_bytes(template.read_bytes()[:5000])


def replace_by_text(template: Path) -> None:
    template.write_text("not a database")


def let_others_write(template: Path) -> None:
    template.chmod(0o666)


def link(template: Path) -> None:
    template.rename(template.with_suffix(".moved"))
    template.symlink_to(template.with_suffix(".moved"))


def use(template: Path) -> None:
    with closing(sqlite3.connect(template)) as store, store:
        store.execute("insert into experiments (experiment_id, name, workspace) values (7, 'x', 'default')")


def forget_version(template: Path) -> None:
    with closing(sqlite3.connect(template)) as store, store:
        store.execute("delete from alembic_version")


@pytest.mark.parametrize("spoil", [damage, replace_by_text, let_others_write, link, use, forget_version])
def test_no_store_is_made_from_a_template_that_may_be_wrong(spoil: object, template: Path, tmp_path: Path) -> None:
    assert callable(spoil)
    spoil(template)
    assert not copy_empty(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_template_that_may_be_wrong_is_replaced(template: Path, made: Path, tmp_path: Path) -> None:
    damage(template)
    keep_empty(made / "mlflow.db")
    assert copy_empty(tmp_path / "mlflow.db")
    assert [path.name for path in template.parent.iterdir()] == [template.name]


def test_what_is_there_is_not_replaced(template: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"")
    (tmp_path / "link.db").symlink_to(tmp_path / "nowhere")
    assert not copy_empty(tmp_path / "mlflow.db")
    assert not copy_empty(tmp_path / "link.db")
    assert (tmp_path / "mlflow.db").read_bytes() == b""


def test_a_used_store_is_not_kept(template: Path, made: Path, tmp_path: Path) -> None:
    used = tmp_path / "used.db"
    assert copy_empty(used)
    open_store(f"sqlite:///{used}").create_experiment("mine")
    template.unlink()
    keep_empty(used)
    assert not template.exists()
    keep_empty(made / "mlflow.db")
    assert template.exists()


def test_a_cache_that_cannot_be_written_to_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not copy_empty(tmp_path / "mlflow.db")
    keep_empty(tmp_path / "mlflow.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("named", "expected"), [("", "/home/me/.cache"), ("relative", "/home/me/.cache"), ("/own", "/own")]
)
def test_where_the_cache_is(named: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    found = template_file()
    assert found is not None
    assert os.path.dirname(found) == f"{expected}/tiny-onn"
