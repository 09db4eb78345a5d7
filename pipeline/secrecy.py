"""Addresses without the passwords in them, for whatever is printed or written."""

import re
from urllib.parse import quote, unquote

_SHORTEST = 4  # characters of a password that is looked for by itself: a shorter one is part of too many words


def mask(text: str, uri: str = "") -> str:
    """`text` without the password of any address in it, nor that of `uri` wherever it stands, encoded or not."""
    _, password = _user_and_password(uri)
    for shape in (password, unquote(password), quote(password, safe="")):
        if len(shape) >= _SHORTEST:
            text = text.replace(shape, "***")
    text = re.sub(r"(://[^/:@\s]*):(?:[^/\s]+|[^@\s]+)@", r"\1:***@", text)
    return re.sub(r"([?&](?:password|passwd|pwd|sslpassword|token)=)[^&\s]+", r"\1***", text, flags=re.IGNORECASE)


def public(uri: str) -> str:
    """`uri` as it may be printed and kept: of a server's without user and password, of any other with it masked.

    MLflow takes a server's user and password from the environment too, so that what is left is enough to go on with.
    """
    user, password = _user_and_password(uri)
    if not uri.startswith(("http://", "https://")) or not (user or password):
        return mask(uri, uri)
    scheme, _, rest = uri.partition("://")
    return mask(f"{scheme}://{rest[_end_of_user(rest) + 1 :]}")


def environment_words(uri: str) -> list[str]:
    """What is to be put before a command that names `public(uri)`: the user, and where the password goes."""
    user, password = _user_and_password(uri)
    if not password or not uri.startswith(("http://", "https://")):
        return []
    return [f"MLFLOW_TRACKING_USERNAME={quote(unquote(user))}", "MLFLOW_TRACKING_PASSWORD=***"]


def _user_and_password(uri: str) -> tuple[str, str]:
    rest = uri.partition("://")[2]
    user, _, password = rest[: max(0, _end_of_user(rest))].partition(":")
    return user, password


def _end_of_user(rest: str) -> int:
    """The place of the @ that ends user and password; -1 without one. A / in a password, though wrong, is covered."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return authority.rfind("@") if "@" in authority else rest.rfind("@")
