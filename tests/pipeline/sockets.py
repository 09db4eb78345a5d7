"""What a process and all that it has started listen on."""

import ipaddress
from contextlib import suppress

import psutil


def listening(pid: int) -> set[str]:
    """Addresses, as ip:port, of the TCP and UDP sockets of a process and its descendants that take from others."""
    addresses: set[str] = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN or (
                    connection.status == psutil.CONN_NONE and connection.laddr
                ):
                    addresses.add(f"{connection.laddr.ip}:{connection.laddr.port}")
    return addresses


def reachable_from_elsewhere(addresses: set[str]) -> set[str]:
    """Those of them that are not loopback."""
    by_address = {each: ipaddress.ip_address(each.rpartition(":")[0]) for each in addresses}
    return {each for each, ip in by_address.items() if not (getattr(ip, "ipv4_mapped", None) or ip).is_loopback}
