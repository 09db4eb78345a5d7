"""Looks for a secret wherever one could have been written."""

from pathlib import Path
from urllib.parse import quote

from tests.pipeline.mlflow_server import everything

SECRET = "s3cr3t/p@ss"  # as it is; in an address it has to be encoded
USER_AND_SECRET = f"me:{quote(SECRET, safe='')}"


def assert_no_secret(*places: Path, texts: tuple[str, ...] = ()) -> int:
    """Asserts that no file under `places`, no table of a SQLite file there and none of `texts` has it, in any shape.

    Returns the number of files looked at.
    """
    shapes = (SECRET, quote(SECRET, safe=""), quote(SECRET))
    looked = 0
    for place in places:
        for path in sorted(place.rglob("*")):
            if path.is_file():
                looked += 1
                raw = path.read_bytes()
                assert not any(shape.encode() in raw for shape in shapes), path
                if path.suffix == ".db":
                    tables = everything(path)
                    assert "CREATE TABLE" in tables
                    assert not any(shape in tables for shape in shapes), path
            assert not any(shape in path.name for shape in shapes), path
    for text in texts:
        assert not any(shape in text for shape in shapes), text
    return looked
