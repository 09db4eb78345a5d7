"""Tells a SQLite store where its files are, when its folder has been moved or copied, for MLflow's own tools.

`pipeline.tracking.client` finds the files without this; MLflow's page and `mlflow.pyfunc.load_model` go by the paths in
the store.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.mlflow_private import known_path_columns
from pipeline.tracking.client import beside

_WAIT_S = 20.0


def correct_paths(database: Path) -> int:
    """Writes into the store where its files are now, and returns how many paths were wrong.

    Raises:
        OSError: the store cannot be written to.
    """
    try:
        with closing(sqlite3.connect(database, timeout=_WAIT_S)) as store:
            wrong = [
                (table, column, was, now)
                for table, column in known_path_columns(store)
                for (was,) in store.execute(f"select distinct {column} from {table} where {column} is not null")
                if (now := beside(database, was)) != was
            ]
            with store:  # all or nothing
                for table, column, was, now in wrong:
                    store.execute(f"update {table} set {column} = ? where {column} = ?", (now, was))
            return len(wrong)
    except sqlite3.Error as error:
        raise OSError(f"{database}: cannot be written to ({error})") from error
