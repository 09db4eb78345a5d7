"""An S3-compatible server on loopback, which a test starts, stops and starts again."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from urllib.request import Request, urlopen

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from pipeline.storage.opening import open_storage
from pipeline.storage.storage import Storage

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_EC2_METADATA_DISABLED": "true"}


class ObjectStore:
    """What it holds outlives its being stopped, as long as this process lives."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._sent: Counter[str] = Counter()
        self.runs = False
        self.port = 0
        self.start()

    def uri(self, bucket: str = "bucket", more: str = "") -> str:
        """Of a folder in a bucket."""
        return f"s3://{bucket}/some/folder?endpoint_override=http://127.0.0.1:{self.port}{more}"

    def storage(self) -> Storage:
        """A folder in a bucket that is there."""
        storage = open_storage(self.uri(more="&allow_bucket_creation=true"))
        storage.filesystem.create_dir("bucket")
        return open_storage(self.uri())

    def bytes_sent(self, paths: Collection[str]) -> int:
        """How many bytes of these objects, by bucket and key, have been asked for so far."""
        return sum(self._sent[f"/{path}"] for path in paths)

    def look_at_credentials(self, wanted: bool) -> None:
        """Whether it refuses keys that it does not know, which is all of them."""
        address = f"http://127.0.0.1:{self.port}/moto-api/reset-auth"
        told = Request(address, data=b"0" if wanted else b"inf", headers={"Content-Type": "text/plain"})
        urlopen(told).close()

    def start(self) -> None:
        """It answers, at the same port as before, with all that it had."""
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.runs = True

    def stop(self) -> None:
        """Nothing answers any more."""
        self._server.shutdown()
        self._server.server_close()
        self.runs = False

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for part in self._app(environ, start_response):
            if environ["REQUEST_METHOD"] == "GET":
                self._sent[environ["PATH_INFO"]] += len(part)
            yield part


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server, and the credentials for it in the environment."""
    with mock.patch.dict(os.environ, CREDENTIALS):
        store = ObjectStore()
        try:
            yield store
        finally:
            if store.runs:
                store.stop()
