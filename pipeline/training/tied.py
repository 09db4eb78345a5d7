"""States of models in which parameters are tied: one memory by several names, of which a file holds one."""

from collections.abc import Mapping

from torch import Tensor, nn


def without_ties(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with each memory by its first name alone. What shares a part of another's memory is copied."""
    first: dict[object, str] = {}
    storages: set[int] = set()
    untied: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:
            untied[name] = tensor
        elif first.setdefault(_memory(tensor), name) == name:
            storage = tensor.untyped_storage().data_ptr()
            untied[name] = tensor.clone() if storage in storages else tensor
            storages.add(storage)
    return untied


def with_ties(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state as `model.load_state_dict` takes it: what `without_ties` has left out, as the model ties it."""
    first: dict[object, str] = {}
    tied = dict(state)
    for name, tensor in model.state_dict().items():
        known = first.setdefault(_memory(tensor), name) if tensor.numel() else name
        if name not in tied and known in tied:
            tied[name] = tied[known]
    return tied


def _memory(tensor: Tensor) -> object:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
