"""Puts a file only where there is none yet, which of several machines that try at once one alone achieves."""

import os
import uuid
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pipeline.storage.storage import Storage, TooLarge

_TIMEOUT = timedelta(seconds=10)
_CONNECT_TIMEOUT = timedelta(seconds=3)
_RETRIES = 2


class NoConditionalPut(Exception):
    """This storage cannot do it, or not with the credentials found. The message says why, without secrets."""


def create(file: Storage, data: bytes) -> bool:
    """Puts `data` where there is no file; False where there is one of other data, which then stays as it is.

    `data` must differ from what any other process would put, say by a token. So a put that succeeded, but whose answer
    was lost, is recognised when it is repeated.

    A folder of this machine or of a network file system is asked by `link`, S3 by a put on the condition
    `If-None-Match: *`. pyarrow's filesystems have neither; S3 is reached by obstore, with credentials from the address,
    the environment or the machine's role, but not from a profile in ~/.aws.

    Raises:
        NoConditionalPut: the storage is of another kind, its server ignores conditions, or obstore has no access.
        StorageError: there is a file, and the storage is away when it is read.
    """
    kind = file.filesystem.type_name
    if kind == "local":
        return _link(Path(file.path), data) or _holds(file, data)
    if kind == "s3":
        return _put(file, data) or _holds(file, data)
    raise NoConditionalPut(f"{file}: storages of the kind {kind!r} have no conditional put")


def _holds(file: Storage, data: bytes) -> bool:
    with suppress(FileNotFoundError, TooLarge):
        return file.read_bytes(len(data)) == data
    return False


def _link(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(data)
        os.link(aside, path)  # fails where there is one; over NFS too
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise NoConditionalPut(f"{path}: cannot be linked ({error.strerror})") from None
    finally:
        with suppress(OSError):
            aside.unlink()


def _put(file: Storage, data: bytes) -> bool:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        store, path = _s3(file)
        obstore.put(store, path, data, mode="create")
    except AlreadyExistsError:
        return False
    except (BaseError, OSError, ValueError) as error:
        raise NoConditionalPut(f"{file}: a conditional put failed ({type(error).__name__})") from None
    try:
        obstore.put(store, path, data, mode="create")
    except AlreadyExistsError:
        return True
    except (BaseError, OSError) as error:
        raise NoConditionalPut(f"{file}: a conditional put failed ({type(error).__name__})") from None
    raise NoConditionalPut(f"{file}: its server ignores the condition `If-None-Match: *`")


def _s3(file: Storage) -> tuple[Any, str]:
    from obstore.store import S3Store

    parts = urlsplit(file.uri)
    options = dict(parse_qsl(parts.query))
    scheme, _, endpoint = options.get("endpoint_override", "").rpartition("://")
    scheme = scheme or options.get("scheme", "https")
    settings: dict[str, Any] = {"region": options.get("region", "us-east-1")} if endpoint else {}
    if not endpoint and (region := options.get("region") or file.filesystem.region):
        settings["region"] = region
    if endpoint:
        settings |= {"endpoint": f"{scheme}://{endpoint.rstrip('/')}", "virtual_hosted_style_request": False}
    if parts.password is not None:
        settings |= {"access_key_id": unquote(parts.username or ""), "secret_access_key": unquote(parts.password)}
    bucket, _, path = file.path.partition("/")
    store = S3Store(
        bucket,
        **settings,
        client_options={"allow_http": scheme == "http", "timeout": _TIMEOUT, "connect_timeout": _CONNECT_TIMEOUT},
        retry_config={"max_retries": _RETRIES, "retry_timeout": _TIMEOUT},
    )
    return store, path
