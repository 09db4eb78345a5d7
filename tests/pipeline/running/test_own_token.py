"""A cluster on this machine asks for a token that this command alone has; one that others can read is pointed out."""

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.running.token import Token, find_token

ROOT = Path(__file__).parents[3]
LOCAL = """
import os, subprocess, sys
from pathlib import Path
from pipeline.running.cluster import connect

others = '''
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None))
'''
for before_or_after_the_import in range(2):
    with connect(None) as cluster:
        import ray

        own = os.environ["RAY_AUTH_TOKEN"]
        assert len(own) == 64
        assert ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote()) == own
        found = []
        for told in ({"RAY_AUTH_TOKEN": own}, {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
            environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
            environment |= {"RAY_AUTH_MODE": "token", **told}
            words = [sys.executable, "-c", others, cluster.head]
            ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
            found.append((ran.returncode, ran.stdout[:2]))
        assert found[0] == (0, "[b"), (found, ran.stderr)
        assert found[1][0] != 0 and found[2][0] != 0, found
    assert "RAY_AUTH_MODE" not in os.environ
    assert os.environ["RAY_AUTH_TOKEN"] == "another cluster's"
assert not (Path.home() / ".ray" / "auth_token").exists()
print("as it should be")
"""


def test_without_the_token_of_a_local_cluster_its_contents_cannot_be_read(tmp_path: Path) -> None:
    environment = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    environment |= {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": "another cluster's"}
    ran = subprocess.run([sys.executable, "-c", LOCAL], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.stdout.strip() == "as it should be", ran.stderr[-3000:]


@pytest.mark.parametrize(("mode", "exposed"), [(0o600, False), (0o400, False), (0o644, True), (0o660, True)])
def test_a_token_that_others_can_read_is_pointed_out(tmp_path: Path, mode: int, exposed: bool) -> None:
    place = tmp_path / ".ray" / "auth token"
    place.parent.mkdir()
    place.write_text("secret")
    place.chmod(mode)
    token = find_token({"RAY_AUTH_TOKEN_PATH": str(place)})
    assert token == Token("secret", str(place))
    assert bool(token.warning) is exposed
    if token.warning:
        assert f"chmod 600 '{place}'" in token.warning
        subprocess.run(shlex.split(token.warning.splitlines()[1]), check=True)
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        assert "secret" not in token.warning
