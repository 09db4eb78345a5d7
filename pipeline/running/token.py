"""The token of a Ray cluster: whoever has it runs code there."""

import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.foreign_json import DamagedJson, read_bounded

_MOST_BYTES = 10_000


@dataclass(frozen=True)
class Token:
    """A cluster's secret, and where it was found. `exposed`: other users of this machine can read its file."""

    secret: str = field(repr=False)
    source: str
    exposed: bool = field(default=False, compare=False)

    @property
    def warning(self) -> str | None:
        """A warning where others can read it."""
        if not self.exposed:
            return None
        return (
            f"Other users of this machine can read {self.source}, and with it run code on the cluster. Make it yours:\n"
            f"  chmod 600 {shlex.quote(self.source)}"
        )


def find_token(environment: Mapping[str, str]) -> Token | None:
    """The token, where Ray looks for it too: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        UserError: the file that RAY_AUTH_TOKEN_PATH names cannot be read, or is empty.
    """
    if environment.get("RAY_AUTH_TOKEN", "").strip():
        return Token(environment["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN")
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path(environment.get("HOME", "/")) / ".ray" / "auth_token"
    exposed = False
    try:
        exposed = bool(stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO))
        raw = read_bounded(path, _MOST_BYTES)
        if len(raw) > _MOST_BYTES:
            raise DamagedJson(f"{path}: has more than {_MOST_BYTES} bytes")
        secret = raw.decode("utf-8").strip()
        if not secret.isprintable():
            raise DamagedJson(f"{path}: holds more than one line")
    except (OSError, UnicodeDecodeError, DamagedJson) as error:
        if named:
            raise UserError(
                f"RAY_AUTH_TOKEN_PATH={path}: cannot be read ({error}). Expected a token's file."
            ) from error
        return None
    if named and not secret:
        raise UserError(f"RAY_AUTH_TOKEN_PATH={path}: is empty. Expected the cluster's token.")
    return Token(secret, str(path), exposed) if secret else None
