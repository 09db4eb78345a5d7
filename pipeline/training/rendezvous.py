"""How a trial's workers find one another: over the interface by which their node joined the cluster.

Left alone, gloo and NCCL take the address that a host's name resolves to, which is often loopback or another network:
the workers then wait for one another until the time limit. Torch is imported in workers alone.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

from pipeline.files import write_whole

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_PARTING_S = 30.0


@dataclass
class ProcessGroup(BackendConfig):
    """What Ray Train's TorchConfig is, without torch in the process that asks for it.

    Workers agree on their interfaces first, and leave in `placement` who is where. `backend` is gloo or nccl.
    """

    backend: str
    timeout_s: int
    placement: str

    @property
    def backend_cls(self) -> Any:
        """What brings the workers together."""
        return _Backend

    @property
    def train_func_context(self) -> Any:
        """In which a worker trains."""
        return on_its_device


class _Backend(Backend):
    share_cuda_visible_devices = True  # of one node's workers, as NCCL needs it

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        places = worker_group.execute(choose_interface)
        ranks = [{"rank": rank, **place} for rank, place in enumerate(places)]
        write_whole(Path(backend_config.placement), json.dumps(ranks, indent=1))
        address, port = worker_group.execute_single(0, free_address)
        worker_group.execute(_export_ranks)
        size, backend, limit_s = len(worker_group), backend_config.backend, backend_config.timeout_s
        arguments = (size, address, port, limit_s)
        ray.get([worker_group.execute_single_async(rank, join, backend, rank, *arguments) for rank in range(size)])

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        with contextlib.suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(_part, len(worker_group) > 1), timeout=_PARTING_S)


def join(backend: str, rank: int, size: int, address: str, port: int, timeout_s: int) -> None:
    """Makes this process one of the default process group; that of rank 0 holds the store, at `address`:`port`.

    The store listens there alone: torch would have it listen on every address of the machine, to anybody.
    """
    import torch.distributed as dist

    listener = None
    if rank == 0:
        here = address if interface_of(address) else ""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((here, port), family=family, backlog=size + 16) as door:
            listener = door.detach()  # the store's from now on
    if backend == "nccl":  # a collective that fails ends the process, rather than hang
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(address, port, size, rank == 0, timeout, master_listen_fd=listener)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


@contextlib.contextmanager
def on_its_device() -> Iterator[None]:
    """A worker's GPU, if it has one, is the one that torch takes by default."""
    import torch

    if (device := device_of_worker()).type == "cuda":
        torch.cuda.set_device(device)
    yield


def device_of_worker() -> Any:
    """The torch.device that Ray Train gives this worker; where there is no CUDA, the CPU, without asking Ray.

    `ray.train.torch` imports Ray Train's trainers, which takes every worker 0.4 s.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    import ray.train.torch

    return ray.train.torch.get_device()


def free_address() -> tuple[str, int]:
    """This node's address in the cluster, and a port that is free there now."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as door:
        door.bind(("", 0))
        return address, door.getsockname()[1]


def _export_ranks() -> None:
    """Sets the variables of torchrun, as Ray Train's TorchConfig does: a user's code may read them."""
    import ray.train

    context = ray.train.get_context()
    os.environ |= {
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "ACCELERATE_TORCH_DEVICE": str(device_of_worker()),
    }


def _part(from_others: bool) -> None:
    import torch
    import torch.distributed as dist

    if from_others and dist.is_initialized():
        dist.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
