"""Addresses without what is secret in them, for whatever is printed or written.

Of an address's query every value is taken for a secret but those of names that are known to hold none: a new kind of
key or signature is masked though nobody has heard of it here.
"""

import re
from urllib.parse import quote, unquote, unquote_plus

_SHORTEST = 4  # characters of a password that is looked for by itself: a shorter one is part of too many words
_SHORTEST_VALUE = 6  # likewise, of a query's value
# Of pyarrow's storages, of databases, and of MLflow's pages and requests, in lower case.
PUBLIC_NAMES = frozenset((
    "region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion",
    "force_virtual_addressing", "blob_storage_authority", "dfs_storage_authority", "blob_storage_scheme",
    "dfs_storage_scheme", "enable_tls", "default_bucket_location", "user", "host", "port", "dbname",
    "database", "driver", "charset", "sslmode", "sslrootcert", "application_name", "connect_timeout",
    "timeout", "mode", "cache", "check_same_thread", "target_session_attrs", "client_encoding",
    "trustservercertificate", "encrypt", "workflowtype", "orderbykey", "orderbyasc", "searchfilter",
    "viewstatesharekey", "comparerunsmode", "lifecyclefilter", "modelversionfilter", "datasetsfilter",
    "starttime", "experiment_id", "run_id", "run_uuid", "path", "max_results", "metric_key", "version",
    "name",
))  # fmt: skip
# name=value, in a query, a fragment, or the ;-separated words of ODBC and JDBC
_VALUE = re.compile(r"(?P<before>[?&#;])(?P<name>[^=&#;?/\s'\"]+)=(?P<value>\{[^}]*\}|[^&#;\s'\"]*)")
_KEY_WORD = re.compile(
    r"(?i)(?P<name>[\w-]*(?:password|passwd|pwd|secret|token|api_?key|account_?key|access_?key|secret_?key|private_?key|"
    r"signature|credential))(?P<is>\s*=\s*|[\"']\s*:\s*)(?P<value>\{[^}]*\}|\"[^\"]*\"|'[^']*'|[^\s;&,'\")\]}]+)"
)
_MASKED = "***"


def mask(text: str, uri: str = "") -> str:
    """`text` without the password of any address in it, without values that may be secret, and without those of `uri`
    wherever they stand, encoded or not."""
    for shape in _secret_shapes(uri):
        text = text.replace(shape, _MASKED)
    text = re.sub(r"(://[^/:@\s]*):(?:[^/\s]+|[^@\s]+)@", rf"\1:{_MASKED}@", text)
    text = re.sub(r"(https?://)[^/:@\s]+@", rf"\1{_MASKED}@", text)  # a user alone may be a token
    text = _VALUE.sub(
        lambda match: match[0] if _is_public(match) else f"{match['before']}{match['name']}={_MASKED}", text
    )
    return _KEY_WORD.sub(rf"\g<name>\g<is>{_MASKED}", text)


def has_secret(uri: str) -> bool:
    """Whether an address holds a user or password of a server, or any value that may be secret."""
    return mask(uri, uri) != uri or public(uri) != uri


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
    return [f"MLFLOW_TRACKING_USERNAME={quote(unquote(user))}", f"MLFLOW_TRACKING_PASSWORD={_MASKED}"]


def _is_public(match: re.Match[str]) -> bool:
    return match["name"].lower() in PUBLIC_NAMES or match["value"] in ("", _MASKED)


def _secret_shapes(uri: str) -> list[str]:
    """The password and the values of `uri` that may be secret, as they can stand in an error: the longest first."""
    _, password = _user_and_password(uri)
    shapes = {each for each in _shapes(password) if len(each) >= _SHORTEST}
    for match in _VALUE.finditer(uri):
        if not _is_public(match):
            shapes |= {each for each in _shapes(match["value"]) if len(each) >= _SHORTEST_VALUE}
            inner = _KEY_WORD.finditer(unquote_plus(match["value"]))  # an ODBC string, in a value
            shapes |= {each["value"] for each in inner if len(each["value"]) >= _SHORTEST}
    return sorted(shapes, key=len, reverse=True)


def _shapes(secret: str) -> set[str]:
    return {secret, unquote(secret), unquote_plus(secret), quote(secret, safe=""), quote(unquote(secret), safe="")}


def _user_and_password(uri: str) -> tuple[str, str]:
    rest = uri.partition("://")[2]
    user, _, password = rest[: max(0, _end_of_user(rest))].partition(":")
    return user, password


def _end_of_user(rest: str) -> int:
    """The place of the @ that ends user and password; -1 without one. A / in a password, though wrong, is covered."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return authority.rfind("@") if "@" in authority else rest.split("?")[0].rfind("@")
