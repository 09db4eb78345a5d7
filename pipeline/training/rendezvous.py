"""How a trial's workers find one another: over the interface by which their node joined the cluster.

Left alone, gloo and NCCL take the address that a host's name resolves to, which is often loopback or another network:
the workers then wait for one another until the time limit. Heavy imports: only where trials run.
"""

import json
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train._internal.utils import get_address_and_port
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars

from pipeline.files import write_whole

_LOOPBACK = "127.0.0.1"
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
        if any(place["node"] != _LOOPBACK for place in places):
            super().on_start(worker_group, backend_config)
            return
        # A cluster that only this machine can reach: so must the store be in which its workers meet, which torch would
        # have listen on every address of the machine, to anybody.
        _, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_set_torch_distributed_env_vars)
        size, backend, limit_s = len(worker_group), backend_config.backend, backend_config.timeout_s
        ray.get([worker_group.execute_single_async(r, join, backend, r, size, port, limit_s) for r in range(size)])


def join(backend: str, rank: int, size: int, port: int, timeout_s: int) -> None:
    """Makes this process one of the default process group; that of rank 0 holds the store, at 127.0.0.1:`port`."""
    listener = None
    if rank == 0:
        with socket.socket() as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((_LOOPBACK, port))
            door.listen(size + 16)
            listener = door.detach()  # the store's from now on
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(_LOOPBACK, port, size, rank == 0, timeout, master_listen_fd=listener)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def choose_interface() -> dict[str, Any]:
    """Sets the interface of this worker's process, unless its node was started with one set; says where it runs."""
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
