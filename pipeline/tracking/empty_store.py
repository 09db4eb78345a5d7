"""New SQLite stores are copies of an empty one that MLflow has made before.

To make one MLflow runs all of its migrations, which takes seconds of a core. The empty one is kept in the user's cache,
for each version of MLflow; where there is none, or none that can be used, MLflow makes the store as always.
"""

import contextlib
import os
import shutil
import sqlite3
import stat
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from pipeline.files import write_whole_with

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def copy_empty(database: Path) -> bool:
    """Copies the empty store to `database`, where nothing is yet; whether it has. The caller holds the store's lock."""
    template = template_file()
    if template is None or os.path.lexists(database) or not _is_empty_store(template):
        return False
    try:
        with template.open("rb") as empty:
            write_whole_with(database, partial(shutil.copyfileobj, empty))
    except OSError:  # MLflow says what is wrong with the place
        return False
    return True


def keep_empty(database: Path) -> None:
    """Keeps a copy of a new store in the cache, unless the cache has one or the store has been used already."""
    template = template_file()
    if template is None or _is_empty_store(template):
        return
    part = template.with_name(f"{template.name}.{os.getpid()}.part")
    try:
        template.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(database)) as store:
            store.execute("vacuum into ?", (str(part),))
        with contextlib.closing(sqlite3.connect(part)) as copy, copy:
            # MLflow's first experiment, which names the folder that it was made for; it makes it again in each copy.
            copy.execute("delete from experiments where experiment_id = 0 and name = 'Default'")
        part.chmod(0o600)
        if _is_empty_store(part):
            os.replace(part, template)
    except (OSError, sqlite3.Error):  # the cache cannot be written to, or MLflow's tables are others now
        pass
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def template_file() -> Path | None:
    """Where the empty store of this version of MLflow is kept; None where the user has no folder for caches."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(named) if os.path.isabs(named) else Path(os.path.expanduser("~"), ".cache")
    if not folder.is_absolute():
        return None
    return folder / "tiny-onn" / f"empty-store-mlflow-{version('mlflow')}.db"


def _is_empty_store(path: Path) -> bool:
    """Whether it is an undamaged store without experiments and runs, in a file that only this user can write."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & _OTHERS_MAY_WRITE:
            return False
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as store:
            whole = store.execute("pragma integrity_check").fetchone() == ("ok",)
            rows = [store.execute(f"select count(*) from {table}").fetchone()[0] for table in ("experiments", "runs")]
            return (
                whole and rows == [0, 0] and bool(store.execute("select version_num from alembic_version").fetchone())
            )
    except (OSError, sqlite3.Error):
        return False
