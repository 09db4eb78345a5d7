"""Calls to this machine go through no proxy, whatever the environment says."""

import os
import socket

import pytest
import requests.utils

from pipeline.proxies import is_loopback, no_proxy_for


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> str:
    """An http_proxy where nothing answers, and nothing said of exceptions."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, address)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")
    return address


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:5000/x", "http://localhost:5000", "http://[::1]:5000", "http://127.0.0.2:1"]
)
def test_loopback_is_reached_directly(dead_proxy: str, url: str) -> None:
    assert is_loopback(url)
    assert requests.utils.get_environ_proxies(url) != {}
    no_proxy_for(url)
    assert requests.utils.get_environ_proxies(url) == {}
    assert requests.utils.get_environ_proxies("http://elsewhere.example")["http"] == dead_proxy


def test_other_addresses_and_the_users_settings_are_left_alone(
    dead_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_proxy_for("http://elsewhere.example:5000")
    assert os.environ["no_proxy"] == ""
    monkeypatch.setenv("no_proxy", "own.example")
    no_proxy_for("http://localhost:1")
    no_proxy_for("http://localhost:1")
    assert os.environ["no_proxy"] == "own.example,localhost,127.0.0.1,::1"
    monkeypatch.setenv("no_proxy", "*")
    no_proxy_for("http://localhost:1")
    assert os.environ["no_proxy"] == "*"
