"""A network of its own: namespaces on one bridge, whose addresses exist nowhere else. Needs root and iproute2."""

import os
import secrets
import shutil
import subprocess
from types import TracebackType
from typing import Self

_SUBNET = "10.213.77"


class Network:
    """Between entering and leaving: `add` makes a namespace with an address; all of them go at the end."""

    def __init__(self) -> None:
        self._mark = f"drill-{secrets.token_hex(3)}"
        self._made: list[str] = []

    def __enter__(self) -> Self:
        hub = self._namespace("hub")
        _ip("-n", hub, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge0", "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "del", name], check=False)

    def add(self, name: str, number: int, gateway: bool = False) -> tuple[str, list[str]]:
        """A namespace with an address, joined to the others; returns the address, and the words to run a command by.

        With `gateway` it has a way out, which leads nowhere: machines tell by it which address is theirs.
        """
        hub, own, address = self._made[0], self._namespace(name), f"{_SUBNET}.{number}"
        _ip("link", "add", "lan0", "netns", own, "type", "veth", "peer", "name", f"port{number}", "netns", hub)
        _ip("-n", hub, "link", "set", f"port{number}", "master", "bridge0", "up")
        _ip("-n", own, "addr", "add", f"{address}/24", "dev", "lan0")
        _ip("-n", own, "link", "set", "lan0", "up")
        _ip("-n", own, "link", "set", "lo", "up")
        if gateway:
            _ip("-n", own, "route", "add", "default", "via", self.nowhere(), "dev", "lan0")
        return address, ["ip", "netns", "exec", own]

    def nowhere(self) -> str:
        """An address of the network that nobody has."""
        return f"{_SUBNET}.250"

    def _namespace(self, name: str) -> str:
        own = f"{self._mark}-{name}"
        _ip("netns", "add", own)
        self._made.append(own)
        return own


def why_not() -> str | None:
    """Why no namespaces can be made here; None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip` command (Debian's package iproute2)"
    probe = f"drill-probe-{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if tried.returncode:
        return tried.stderr.strip()
    _ip("netns", "del", probe)
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
