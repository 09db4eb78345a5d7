"""`ray up cluster.yaml` for real: three machines that are namespaces of this one, each with its sshd, and a laptop.

A machine has its own network, processes (`ray stop` must not see anybody else's), home, /tmp and /run; all see the
folder /mnt/tiny-onn. Only places that the file marks are changed. The machines have no way out: pip takes packages from
a folder, as its own configuration there says.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.drills.namespaces import Network, why_not
from tests.drills.scene import EXPERIMENT, ROOT, Scene, Skipped

_NAME = "brought-up"
_SHARED = "/mnt/tiny-onn"
_KEY = "/tmp/home/.ssh/id_ed25519"  # the laptop's, there
_SYSTEM_PYTHON = Path("/usr/bin/python3")  # what nodes make their environment with: their homes hide any other
_SSHD = """\
ListenAddress {address}
HostKey /root/.sshd/key
AuthorizedKeysFile /root/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""
# $1 is the machine's own disk, $2 the folder that all share, $3 the packages. /tmp, where all that may be, is last.
_DISKS = """
mount -t tmpfs tmpfs /run && mkdir -p /run/sshd
mount -t tmpfs tmpfs /mnt && mkdir -p /mnt/tiny-onn /mnt/packages
mount --bind "$2" /mnt/tiny-onn && mount --bind "$3" /mnt/packages
mount --bind "$1/home" /root && mount --bind "$1/tmp" /tmp
"""


@dataclass
class Machines:
    """Those of one cluster, and the laptop that brings it up."""

    place: Path
    network: Network
    addresses: dict[str, str] = field(default_factory=dict)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _laptop: Sequence[str] = ()

    def packages(self) -> Path:
        """What `pip install '.[cluster]'` takes, as wheels."""
        folder = self.place / "packages"
        if not folder.exists():
            aside = self.place / "packages-half"
            words = ["download", "--quiet", "--constraint", "constraints.txt", "--dest", str(aside), ".[cluster]"]
            done = _run([sys.executable, "-m", "pip", *words, "setuptools>=77", "wheel"], cwd=ROOT)
            if done.returncode:
                raise Skipped(f"the packages for the nodes cannot be had: {done.stdout[-300:]}")
            aside.rename(folder)
        return folder

    def start(self, name: str, number: int) -> None:
        """Starts a machine that lets the laptop's key in."""
        address, inside = self.network.add(name, number, gateway=True)
        disk = self.place / f"disk-{name}"
        for folder in (".ssh", ".sshd", ".config/pip"):
            (disk / "home" / folder).mkdir(parents=True)
        (disk / "tmp").mkdir()
        shutil.copy(self.place / "laptop/home/.ssh/id_ed25519.pub", disk / "home/.ssh/authorized_keys")
        _key(disk / "home/.sshd/key")
        (disk / "home/.sshd/config").write_text(_SSHD.format(address=address))
        (disk / "home/.config/pip/pip.conf").write_text("[global]\nno-index = true\nfind-links = /mnt/packages\n")
        script = f"set -e\n{_DISKS}cd /\n/usr/sbin/sshd -D -e -f /root/.sshd/config &\nwait"
        log = (self.place / f"{name}.log").open("wb")
        words = [*inside, *_APART, "bash", "-c", script, "machine", str(disk), str(self.shared), str(self.packages())]
        plain = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self._running.append(
            subprocess.Popen(words, env=plain, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        )
        self.addresses[name] = address

    @property
    def shared(self) -> Path:
        """The folder that all machines see."""
        return self.place / "shared"

    def start_laptop(self, number: int) -> None:
        """A machine with a key of its own, and a home and /tmp of its own."""
        _, self._laptop = self.network.add("laptop", number)
        for folder in ("home/.ssh", "home/.ray"):
            (self.place / "laptop" / folder).mkdir(parents=True)
        _key(self.place / "laptop/home/.ssh/id_ed25519")

    def laptop(self, *words: str, limit_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Runs a command there, in the working tree. Its folder `laptop` is /tmp to it."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TINY_ONN_", "PIP_"))}
        own |= {"HOME": "/tmp/home", "PATH": f"{Path(sys.executable).parent}:{own['PATH']}", "PYTHONPATH": str(ROOT)}
        own |= {"RAY_USAGE_STATS_ENABLED": "0", "TERM": "dumb"}
        script = 'mount --bind "$0" /tmp && exec "$@"'
        inside = [*self._laptop, *_APART, "bash", "-c", script, str(self.place / "laptop")]
        return _run([*inside, *words], cwd=ROOT, env=own, limit_s=limit_s)

    def ssh(self, name: str, command: str) -> str:
        """What a command prints that the laptop runs on a machine, as Ray does."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        key = ["-o", "ConnectTimeout=5", "-i", _KEY]
        done = self.laptop("ssh", *options, *key, f"root@{self.addresses[name]}", command, limit_s=60)
        assert done.returncode == 0, f"{name}: {command}: {done.stdout}\n{(self.place / f'{name}.log').read_text()}"
        return done.stdout

    def stop(self) -> None:
        """Ends the machines with all that runs on them: their first process goes, and the kernel takes the rest."""
        for each in self._running:
            each.kill()
            each.wait()


_APART = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _run(
    words: Sequence[str], cwd: Path, env: dict[str, str] | None = None, limit_s: float = 900
) -> subprocess.CompletedProcess[str]:
    quiet = subprocess.DEVNULL
    return subprocess.run(
        words,
        cwd=cwd,
        env=env,
        stdin=quiet,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
    )


def _key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def with_marked_places(text: str, head: str, workers: Sequence[str]) -> str:
    """cluster.yaml with its places (1) and (3) filled in: addresses, and root who logs in, with a key named in full.

    What `~` is to ssh is in the system's list of users; the laptop has another home.
    """
    changes = {r"head_ip: \S+": f"head_ip: {head}", r"worker_ips: \[.*\]": f"worker_ips: [{', '.join(workers)}]"}
    changes |= {r"~/tiny-onn: build/package": "~/tiny-onn: /tmp/package"}
    changes |= {r"ssh_user: \S+": "ssh_user: root", r"ssh_private_key: \S+": f"ssh_private_key: {_KEY}"}
    for place, filled in changes.items():
        text, times = re.subn(place, filled, text)
        assert times == 1, place
    return text


def rehearse(place: Path) -> str:
    """Brings a cluster up, has it run a sweep, and takes it down; returns what was seen.

    Raises:
        AssertionError: it did not go as it should.
        Skipped: the nodes' packages cannot be had.
    """
    place.mkdir(parents=True, exist_ok=True)
    with Network() as network:
        machines = Machines(place, network)
        machines.shared.mkdir(exist_ok=True)
        machines.packages()
        try:
            return _rehearse(machines)
        finally:
            machines.stop()


def _rehearse(machines: Machines) -> str:
    machines.start_laptop(100)
    for number, name in enumerate(("head", "one", "two"), 1):
        machines.start(name, number)
    time.sleep(1.0)
    for name in machines.addresses:
        seen = machines.ssh(name, "ps -eo args")  # `ray stop` ends whatever it finds: it must find nothing of ours
        assert not re.search("raylet|gcs_server|ray::|/ray/", seen), f"{name} sees processes of others:\n{seen}"
        assert len(seen.splitlines()) < 12, seen
    text = with_marked_places(
        (ROOT / "cluster.yaml").read_text(), machines.addresses["head"], [machines.addresses[n] for n in ("one", "two")]
    )
    (machines.place / "laptop/cluster.yaml").write_text(text)
    small = {**EXPERIMENT, "name": _NAME, "workers": {"count": 2, "cpus": 1.0, "timeout_s": 60}}
    small["sweep"] = {"arms": ["per_token"], "seeds": [0, 1]}
    (machines.place / "laptop/small.yaml").write_text(yaml.safe_dump(small))

    took = {}
    token = machines.laptop("ray", "get-auth-token", "--generate")
    assert token.returncode == 0, token.stdout
    package = Path("/tmp/package")  # the laptop's own
    packed = machines.laptop("tiny-onn", "pack", str(package))
    assert packed.returncode == 0, packed.stdout
    began = time.monotonic()
    up = machines.laptop("ray", "up", "-y", "/tmp/cluster.yaml", limit_s=1800)
    (machines.place / "up.log").write_text(up.stdout)
    assert up.returncode == 0, up.stdout
    took["ray up"] = time.monotonic() - began
    _wait_for_nodes(machines, 3)
    took["all three nodes"] = time.monotonic() - began

    url = f"http://{machines.addresses['head']}:8265"
    began = time.monotonic()
    submitted = machines.laptop("tiny-onn", "submit", "/tmp/small.yaml", "--address", url)
    (machines.place / "submit.log").write_text(submitted.stdout)
    assert submitted.returncode == 0, submitted.stdout
    took["the sweep"] = time.monotonic() - began
    results = sorted(machines.shared.glob(f"sweeps/{_NAME}/trials/*/result.json"))
    assert len(results) == 2, submitted.stdout

    again = machines.laptop("ray", "up", "-y", "/tmp/cluster.yaml")
    (machines.place / "up-again.log").write_text(again.stdout)
    assert again.returncode == 0, again.stdout
    _wait_for_nodes(machines, 3)
    down = machines.laptop("ray", "down", "-y", "/tmp/cluster.yaml")
    (machines.place / "down.log").write_text(down.stdout)
    assert down.returncode == 0, down.stdout
    assert "raylet" not in machines.ssh("head", "ps -eo args"), down.stdout
    deadline, began = time.monotonic() + 240, time.monotonic()  # workers end by themselves, when they miss their head
    while left := [n for n in machines.addresses if "raylet" in machines.ssh(n, "ps -eo args")]:
        assert time.monotonic() < deadline, f"Ray still runs on {left}"
        time.sleep(2.0)
    took["the last worker's end after `ray down`"] = time.monotonic() - began
    return ", ".join(f"{what} {seconds:.0f} s" for what, seconds in took.items())


def _wait_for_nodes(machines: Machines, number: int) -> None:
    """Workers are brought up by the head, after `ray up` has returned."""
    ask = (
        'RAY_AUTH_MODE=token ~/tiny-onn-env/bin/python -c \'import ray; ray.init(address="auto", log_to_driver=False); '
        'print("alive:", sum(node["Alive"] for node in ray.nodes()))\' 2>&1 || true'
    )
    deadline, said = time.monotonic() + 900, ""
    while f"alive: {number}" not in said:
        logs = "tail -n 30 /tmp/ray/session_latest/logs/monitor.*"
        assert time.monotonic() < deadline, f"{said}\n{machines.ssh('head', f'{logs} || true')}"
        time.sleep(3.0)
        said = machines.ssh("head", ask)


def ray_up(scene: Scene) -> str:
    """`ray up cluster.yaml`, a sweep by `tiny-onn submit`, `ray down`, on three machines in namespaces with sshd."""
    reason = why_not()
    lacking = [name for name in ("rsync", "ssh", "/usr/sbin/sshd", str(_SYSTEM_PYTHON)) if shutil.which(name) is None]
    if lacking:
        reason = (
            f"there is no {', '.join(lacking)} (Debian's packages openssh-server, openssh-client, rsync, python3-venv)"
        )
    elif Path("/tmp") in (*ROOT.parents, *Path(sys.prefix).parents):
        reason = f"each machine has a /tmp of its own, in which {ROOT} is not; try it from a clone elsewhere"
    if reason:
        raise Skipped(reason)
    return rehearse(scene.output / "machines")


DRILLS = (ray_up,)
