"""Ray nodes as processes of a test's own: on loopback, or each in a network namespace. Token auth is always on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

ROOT = Path(__file__).parents[2]


@dataclass
class RayNode:
    """`ray start --block`, and all that it started."""

    process: subprocess.Popen[bytes]
    log: Path
    _known: dict[int, psutil.Process] = field(default_factory=dict)

    def processes(self) -> list[psutil.Process]:
        """Those that live, also when their parents are gone."""
        roots = [each for each in self._known.values() if each.is_running()]
        if self.process.poll() is None:
            roots.append(psutil.Process(self.process.pid))
        for root in roots:
            try:
                self._known |= {each.pid: each for each in (root, *root.children(recursive=True))}
            except psutil.NoSuchProcess:
                continue
        return [each for each in self._known.values() if each.is_running()]

    def kill(self) -> None:
        """As if the machine lost its power."""
        for _ in range(3):  # a process may start another while this goes on
            for each in self.processes():
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.2)
        self.process.wait(timeout=10)

    def stop(self) -> None:
        """In order; what does not end within ten seconds is killed."""
        self.processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        psutil.wait_procs(self.processes(), timeout=10)
        self.kill()


def cluster_environment(token: Path, **more: str) -> dict[str, str]:
    """Of the cluster's own processes: this environment's Python first on PATH, token auth, the code under test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TINY_ONN_"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        **more,
    }


def start_node(
    options: Sequence[str], environment: Mapping[str, str], log: Path, prefix: Sequence[str] = ()
) -> RayNode:
    """`ray start OPTIONS --block`; `prefix` is a command to run it by, such as `ip netns exec NAME`."""
    command = [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*command, *options],
            cwd="/",  # not the working tree: what runs there must come with the job
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return RayNode(process, log)


def own_disk(ray_folder: Path, own: Path) -> list[str]:
    """Words to run a node by that is to find another folder where the head has its own; needs root.

    Ray takes nodes for machines with a disk each: two that share a folder unpack a job's package into one place, and
    the second removes it under the feet of the first.
    """
    own.mkdir(parents=True, exist_ok=True)
    script = 'mount --bind "$0" "$1" && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(own), str(ray_folder)]


def wait_for_jobs_api(url: str, token: str, node: RayNode, seconds: float = 90.0) -> None:
    """Until the head takes jobs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert node.process.poll() is None, node.log.read_text()
        try:
            if requests.get(f"{url}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise AssertionError(f"no job server at {url} after {seconds:g} s:\n{node.log.read_text()}")
