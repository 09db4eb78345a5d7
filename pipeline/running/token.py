"""The token of a Ray cluster: whoever has it runs code there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError


@dataclass(frozen=True)
class Token:
    """A cluster's secret, and where it was found."""

    secret: str = field(repr=False)
    source: str


def find_token(environment: Mapping[str, str]) -> Token | None:
    """The token, where Ray looks for it too: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        UserError: the file that RAY_AUTH_TOKEN_PATH names cannot be read, or is empty.
    """
    if environment.get("RAY_AUTH_TOKEN", "").strip():
        return Token(environment["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN")
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path(environment.get("HOME", "/")) / ".ray" / "auth_token"
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise UserError(
                f"RAY_AUTH_TOKEN_PATH={path}: cannot be read ({error}). Expected a token's file."
            ) from error
        return None
    if named and not secret:
        raise UserError(f"RAY_AUTH_TOKEN_PATH={path}: is empty. Expected the cluster's token.")
    return Token(secret, str(path)) if secret else None
