"""Linear layers of a model made sparse: SparseProtoLinear in their place, with the same weights."""

from collections import Counter

import torch
from torch import nn
from torch.nn.utils import parametrize

from tiny_onn.layers import GateParameter, SparseProtoLinear
from tiny_onn.linear_layers import Where, bias_of, is_transposed, select_linear, weight_of


def sparsify(
    model: nn.Module,
    where: Where | None = None,
    *,
    density: float | None = None,
    gain: float = 1.0,
    gate_parameter: GateParameter = "off",
) -> dict[str, nn.Module]:
    """Replaces linear layers of `model`, in place, by SparseProtoLinear layers without a residual.

    W and b are the layer's own parameters, so that what is tied stays tied; of a Hugging Face Conv1D, whose weight is
    W^T, W is a copy. A layer without b gets one of zeros that does not learn. P, and G where there is one, are new,
    from torch's random numbers. With every expert open the model computes what it did before; under another gate it
    does not, until its router has learned.

    Args:
        where: types, names, also with wildcards, or a function of name and module, as of `capture(layers=...)`. By
            default every nn.Linear and Conv1D that the model calls.
        density, gain, gate_parameter: of the new layers, see SparseProtoLinear.

    Returns:
        what was replaced, by qualified name. Optimizers are to be made afterwards: P and G are new parameters.

    Raises:
        ValueError: `where` selects nothing or something else, or a layer that cannot be replaced; nothing was changed.
    """
    selected = select_linear(model, _linear_types(model) if where is None else where, "where")
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, layer in selected.items():
        if layer is model:
            raise ValueError("where: '' is the model itself, which cannot be replaced in itself; use nn.Sequential(it)")
        if problem := _problem(layer, owners):
            raise ValueError(f"where: {name!r} {problem}")
    new = {layer: _sparse(layer, density, gain, gate_parameter) for layer in selected.values()}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in new:
                setattr(parent, name, new[child])
    _avoid_fast_paths(model)
    return selected


def _linear_types(model: nn.Module) -> tuple[type, ...]:
    transposed = {type(each) for each in model.modules() if is_transposed(each)}
    linear = any(isinstance(each, nn.Linear) for each in model.modules())
    return (nn.Linear, *transposed) if linear or not transposed else tuple(transposed)


def _problem(layer: nn.Module, owners: Counter[int]) -> str | None:
    """Why the layer cannot be replaced; None where it can."""
    if isinstance(layer, SparseProtoLinear):
        return "is a SparseProtoLinear already; select others"
    weight = weight_of(layer)
    if parametrize.is_parametrized(layer) or not isinstance(layer.weight, nn.Parameter):
        return "has a weight that is computed from others; remove its parametrization before"
    if weight.dtype not in (torch.float32, torch.float64):
        return f"has parameters in {weight.dtype}; expected float32 or float64: use autocast for narrower products"
    if is_transposed(layer) and owners[id(layer.weight)] > 1:
        return "is a Conv1D whose weight another module uses, too, which would not follow; untie them or select others"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "has hooks, which would be lost; remove them before"
    return None


def _sparse(layer: nn.Module, density: float | None, gain: float, gate_parameter: GateParameter) -> SparseProtoLinear:
    weight, bias = weight_of(layer), bias_of(layer)
    outputs, inputs = weight.shape
    sparse = SparseProtoLinear(
        inputs, outputs, residual=False, gain=gain, density=density, gate_parameter=gate_parameter
    )
    sparse.to(device=weight.device, dtype=weight.dtype).train(layer.training)
    if isinstance(weight, nn.Parameter):
        sparse.mu_weight = weight
    else:
        sparse.mu_weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
        sparse.mu_weight.requires_grad_(weight.requires_grad)
    if bias is None:
        sparse.mu_bias.requires_grad_(False)
    else:
        assert isinstance(bias, nn.Parameter)
        sparse.mu_bias = bias
    return sparse


def _avoid_fast_paths(model: nn.Module) -> None:
    """torch's fused encoder of evaluation mode takes the weights of its layers, and would leave the routing out."""
    for each in model.modules():
        if any(isinstance(inner, SparseProtoLinear) for inner in each.modules()):
            if isinstance(each, nn.TransformerEncoderLayer):
                each.activation_relu_or_gelu = 0
            elif isinstance(each, nn.TransformerEncoder):
                each.use_nested_tensor = False
