"""Calls to this machine itself go through no proxy."""

import os
from urllib.parse import urlsplit

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(url: str) -> bool:
    """Whether an address is one of this machine alone."""
    host = urlsplit(url).hostname or ""
    return host in _LOOPBACK or host.startswith("127.")


def no_proxy_for(url: str) -> None:
    """Where `url` is on loopback, has this process, and those that it starts, reach it directly.

    `http_proxy` sends loopback through the proxy too unless `no_proxy` says otherwise, and a proxy elsewhere cannot
    reach it. It stays in force after the call: threads that deliver metrics need it for as long as they run.
    """
    host = urlsplit(url).hostname or ""
    if not is_loopback(url):
        return
    for name in ("no_proxy", "NO_PROXY"):
        listed = [each.strip() for each in os.environ.get(name, "").split(",") if each.strip()]
        missing = [each for each in dict.fromkeys([*_LOOPBACK, host]) if each not in listed]
        if missing and "*" not in listed:
            os.environ[name] = ",".join([*listed, *missing])
