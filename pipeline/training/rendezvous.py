"""How a trial's workers find one another: over the interface by which their node joined the cluster.

Left alone, gloo and NCCL take the address that a host's name resolves to, which is often loopback or another network:
the workers then wait for one another until the time limit. Heavy imports: only where trials run.
"""

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.train.torch import TorchConfig

from pipeline.files import write_whole

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass
class RoutedTorchConfig(TorchConfig):
    """A TorchConfig whose workers agree on their interfaces first, and leave in `placement` who is where."""

    placement: str = ""

    @property
    def backend_cls(self) -> Any:
        """Ray's own backend, with a step before it."""
        return _RoutedBackend


class _RoutedBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # the one that this Ray has
    def on_start(self, worker_group: Any, backend_config: RoutedTorchConfig) -> None:
        places = worker_group.execute(choose_interface)
        ranks = [{"rank": rank, **place} for rank, place in enumerate(places)]
        write_whole(Path(backend_config.placement), json.dumps(ranks, indent=1))
        super().on_start(worker_group, backend_config)


def choose_interface() -> dict[str, Any]:
    """Sets the interface of this worker's process, unless its node was started with one set; says where it runs."""
    import ray

    address = ray.util.get_node_ip_address()
    name = interface_of(address)
    if name is not None:
        for variable in _VARIABLES:
            os.environ.setdefault(variable, name)
    return {"node": address, "interface": os.environ.get(_VARIABLES[0]), "pid": os.getpid()}


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has `address`; all of 127.0.0.0/8 is loopback's. None: no such."""
    for name, addresses in psutil.net_if_addrs().items():
        ours = [each.address for each in addresses if each.family in (socket.AF_INET, socket.AF_INET6)]
        if address in ours or (address.startswith("127.") and "127.0.0.1" in ours):
            return name
    return None
