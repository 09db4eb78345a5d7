"""From what a user or another process wrote down to a Storage, tried before anything depends on it."""

import threading
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.secrecy import mask
from pipeline.settings.wrong_settings import did_you_mean
from pipeline.storage.storage import Place, Storage, in_a_line

_PROBE_S = 10.0
_S3_OPTIONS = ("region", "scheme", "endpoint_override", "allow_bucket_creation")
_ATTEMPTS = 3  # of a request to S3, within a few seconds; whoever can wait longer tries again
_CONNECT_S = 3.0


def located(text: str) -> Place:
    """The place that `location` wrote down."""
    return open_storage(text) if "://" in text else Path(text)


def open_storage(uri: str) -> Storage:
    """The storage that `uri` names; nothing is asked of it yet. A path without a scheme is a folder of this machine.

    S3: s3://bucket/prefix?region=...&endpoint_override=host:port&scheme=http. Credentials are best left to the
    environment (AWS_ACCESS_KEY_ID, ...), to configuration files or to the machine's role; s3://key:secret@bucket works.

    Raises:
        UserError: it is no URI that pyarrow's filesystems know.
    """
    if not uri.strip():  # as of a variable of the shell that is not set
        raise UserError("--storage: is empty. Expected a folder that all machines share, or s3://bucket/prefix.")
    if "://" not in uri:
        uri = Path(uri).expanduser().resolve().as_uri()
    try:
        parts = urlsplit(uri)
        if parts.scheme == "s3":
            filesystem, path = _s3(uri)
        else:
            filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"--storage {mask(uri)}: cannot be used ({in_a_line(error, uri)}). Expected a folder that all machines "
            "share, or a URI such as s3://bucket/prefix or gs://bucket/prefix."
        ) from None
    return Storage(filesystem, path.rstrip("/"), uri)


def checked_storage(uri: str | None) -> Storage | None:
    """`open_storage` and `check_storage`; None when none is named."""
    if uri is None:
        return None
    storage = open_storage(uri)
    check_storage(storage)
    return storage


def check_storage(storage: Storage) -> None:
    """Writes a small file, reads it and removes it.

    Raises:
        UserError: within about ten seconds: nothing answers, there is no such bucket, or access is refused.
    """
    problems: list[str] = [f"no answer within {_PROBE_S:.0f} s"]

    def probe() -> None:
        file, written = storage / f".probe-{uuid.uuid4().hex[:8]}", b"tiny-onn"
        try:
            file.write_bytes(written)
            content = file.read_bytes()
            file.remove()
            problems[:] = [] if content == written else [f"found {content!r} where {written!r} was written"]
        except OSError as error:
            problems[:] = [str(error).removeprefix(f"{file}: ")]

    thread = threading.Thread(target=probe, name="storage-probe", daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    if problems:
        raise UserError(
            f"--storage {storage.public}: cannot be used ({problems[0]}). Expected a place that can be written to: "
            "check the address, the bucket and the credentials (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."
        )


def _s3(uri: str) -> tuple[fs.FileSystem, str]:
    parts = urlsplit(uri)
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    for name in options:
        if name not in _S3_OPTIONS:
            raise ValueError(f"option {name!r}{did_you_mean(name, _S3_OPTIONS)}; there are: {', '.join(_S3_OPTIONS)}")
    if not parts.hostname:
        raise ValueError("it has no bucket")
    scheme, _, endpoint = options.get("endpoint_override", "").rpartition("://")
    if endpoint:
        options |= {"endpoint_override": endpoint.rstrip("/"), "region": options.get("region", "us-east-1")}
        options |= {"scheme": scheme} if scheme else {}
    if "allow_bucket_creation" in options:
        options["allow_bucket_creation"] = options["allow_bucket_creation"].lower() == "true"
    if parts.password is not None:
        options |= {"access_key": unquote(parts.username or ""), "secret_key": unquote(parts.password)}
    filesystem = fs.S3FileSystem(
        **options,
        connect_timeout=_CONNECT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        allow_delayed_open=True,  # one request for a small file instead of three
    )
    bucket = parts.netloc.rpartition("@")[2]
    return filesystem, f"{bucket}/{unquote(parts.path).strip('/')}"
