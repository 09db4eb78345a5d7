"""Where a sweep's runs go, kept in its folder so that `tiny-onn sync` knows; without any password."""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.errors import UserError
from pipeline.escaping import shown
from pipeline.files import read_json, write_whole
from pipeline.foreign_json import text
from pipeline.layout import ARTIFACTS, Output, sqlite_uri
from pipeline.secrecy import environment_words, public
from pipeline.tracking.describe import SWEEP_ID
from pipeline.tracking.store import sqlite_file

EXPERIMENT = "tiny-onn"


@dataclass(frozen=True)
class Destination:
    """A store and an experiment in it. `uri` is None for the SQLite file in the output folder."""

    uri: str | None = None
    experiment: str = EXPERIMENT

    def store(self, output: Output) -> tuple[str, Path | None]:
        """The store's address, and where a new experiment of it keeps its files (None: where the server says)."""
        uri = output.tracking_uri if self.uri is None else self.uri
        if uri.startswith(("http://", "https://")):
            return uri, None
        database = uri.removeprefix("sqlite:///")
        beside = self.uri is not None and database != uri and not database.startswith(("file:", ":memory:"))
        # Beside the database, not where we stand.
        return uri, Path(unquote(database)).with_name(ARTIFACTS) if beside else output.artifacts

    def options(self) -> list[str]:
        """The options that name it on a command line; a password is masked, or left out."""
        words = [] if self.uri is None else ["--tracking-uri", public(self.uri)]
        return words + ([] if self.experiment == EXPERIMENT else ["--experiment", self.experiment])

    def command(self, words: list[str]) -> str:
        """A command line for the user to type, with the places of user and password where there are any."""
        return " ".join([*environment_words(self.uri or ""), shlex.join(words)])

    def sync_command(self, sweep: str, output: Output) -> str:
        """The command line that delivers what is left of a sweep."""
        secret = self.uri is not None and (public(self.uri) != self.uri or _given(self.uri))
        options = ["--tracking-uri", public(self.uri or "")] if secret else []  # `recall` sends no password without it
        return self.command(["tiny-onn", "sync", sweep, "--output", str(output.root), *options])


def remember(sweep_folder: Path, destination: Destination, tags: dict[str, str]) -> None:
    """Writes the destination, and the `tags` that each of the sweep's runs gets, into the sweep's folder."""
    address = _wherever_we_stand(destination.uri, Output(sweep_folder.parents[1]))
    uri = None if address is None else public(address)
    kept = {"uri": uri, "needs_password": uri != address, "experiment": destination.experiment, "tags": tags}
    write_whole(sweep_folder / "tracking.json", json.dumps(kept, indent=1))


def _wherever_we_stand(uri: str | None, output: Output) -> str | None:
    """`uri` as it means the same from any folder; None for the store of the output folder, which may be moved."""
    database = None if uri is None else sqlite_file(uri)
    if uri is None or database is None:
        return uri
    if sqlite_uri(database) == output.tracking_uri:
        return None
    return uri if database.is_absolute() else sqlite_uri(database)


def remembered_id(sweep_folder: Path) -> str | None:
    """The sweep's id among the tags that `remember` wrote; "" where they have none, None where nothing is written."""
    record = read_json(sweep_folder / "tracking.json")
    tags = record.get("tags") if isinstance(record, dict) else None
    return str(tags.get(SWEEP_ID, "")) if isinstance(tags, dict) else None


def recall(sweep_folder: Path, uri: str | None, experiment: str | None) -> tuple[Destination, dict[str, str]]:
    """The destination and tags that `remember` wrote; `uri` and `experiment`, where given, go before.

    Raises:
        UserError: the address had a password, which is not kept, and nothing now gives it.
    """
    kept = _read(sweep_folder / "tracking.json")
    address = kept["uri"] if uri is None else uri
    if uri is None and kept["needs_password"] and not _given(str(address)):
        raise UserError(
            f"{sweep_folder.name}: was tracked at {address} with a password, which is not kept. Give it in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD and name the server with --tracking-uri, or "
            "name the whole address with --tracking-uri."
        )
    if uri is None and address is not None and _given(address):
        raise UserError(
            f"{sweep_folder.name}: {sweep_folder / 'tracking.json'} says that it is tracked at {address}, and whoever "
            "can write that file could have your password sent elsewhere. If that is the server which "
            f"MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN is for, say so: --tracking-uri {address}"
        )
    return Destination(address, experiment or kept["experiment"]), kept["tags"]


def _read(path: Path) -> dict[str, Any]:
    """What `remember` wrote, or what stands for it where there is nothing.

    Raises:
        UserError: it is something else.
    """
    record = read_json(path)
    kept = record if isinstance(record, dict) else {}
    try:
        tags = kept.get("tags", {})
        if not isinstance(tags, dict) or not isinstance(kept.get("needs_password", False), bool):
            raise ValueError("`tags` is no object, or `needs_password` neither true nor false")
        return {
            "uri": None if kept.get("uri") is None else shown(text(kept["uri"], 2000), keep=""),
            "needs_password": kept.get("needs_password", False),
            "experiment": text(kept.get("experiment", EXPERIMENT), 250),
            "tags": {text(name, 250): text(value, 10_000) for name, value in tags.items()},
        }
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}). Remove it, and name the store with --tracking-uri.") from None


def _given(uri: str) -> bool:
    """Whether MLflow would send a password, or the like, to a server at `uri`."""
    named = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
    kept = Path(os.environ.get("HOME", "/")) / ".mlflow" / "credentials"
    return uri.startswith(("http://", "https://")) and (any(map(os.environ.get, named)) or kept.exists())
