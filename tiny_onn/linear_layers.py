"""Linear layers of any model, y = x W^T + b: which there are, and how one says which are meant.

Known are nn.Linear, SparseProtoLinear and the Conv1D of Hugging Face's transformers, whose weight is W^T.
"""

import difflib
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tiny_onn.layers import SparseProtoLinear

Where = type | str | Callable[[str, nn.Module], bool] | Iterable[type | str]
"""Which layers of a model: by type, by qualified name, also with wildcards such as "blocks.*.mlp", or by a predicate
of name and module; or several types and names."""


def is_transposed(module: nn.Module) -> bool:
    """Whether it is Hugging Face's Conv1D, told without importing transformers: its weight is [i, o]."""
    kinds = type(module).__mro__
    return any(each.__name__ == "Conv1D" and each.__module__.partition(".")[0] == "transformers" for each in kinds)


def is_linear(module: nn.Module) -> bool:
    """Whether it is a layer of a kind that is known here."""
    return isinstance(module, (nn.Linear, SparseProtoLinear)) or is_transposed(module)


def weight_of(module: nn.Module) -> Tensor:
    """W [o, i] of a linear layer; of a Conv1D a view of its weight."""
    if isinstance(module, SparseProtoLinear):
        return module.mu_weight
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if is_transposed(module) else weight


def bias_of(module: nn.Module) -> Tensor | None:
    """b [o] of a linear layer."""
    return module.mu_bias if isinstance(module, SparseProtoLinear) else module.bias  # type: ignore[return-value]


def select_linear(model: nn.Module, where: Where, argument: str) -> dict[str, nn.Module]:
    """The layers that `where` selects, by qualified name, a shared one once, in the order of named_modules().

    Of what a name with wildcards selects, only linear layers are meant. Where types or wildcards select several layers,
    those whose weight their owner uses without calling them, as nn.MultiheadAttention does, are left out with a
    warning.

    Args:
        argument: the name of the argument that `where` comes from, for errors.

    Raises:
        ValueError: nothing is selected, a name or type selects nothing, or what is selected is no linear layer.
    """
    selectors = _selectors(where, argument)
    modules = dict(model.named_modules())
    uncalled = _without_calls(model)
    chosen: dict[str, nn.Module] = {}
    left_out: list[str] = []
    for selector in selectors:
        matching = {name: module for name, module in modules.items() if _matches(selector, name, module)}
        wide = isinstance(selector, type) or (isinstance(selector, str) and selector not in modules)
        if isinstance(selector, str) and wide:
            matching = {name: module for name, module in matching.items() if is_linear(module)}
        if wide and not all(module in uncalled for module in matching.values()):
            left_out += [name for name, module in matching.items() if module in uncalled]
            matching = {name: module for name, module in matching.items() if module not in uncalled}
        if not matching:
            raise ValueError(f"{argument}: {_title(selector)} selects no layer; {_what_there_is(modules, selector)}")
        chosen |= matching
    for name, module in chosen.items():
        if problem := _problem(name, module, module in uncalled):
            raise ValueError(f"{argument}: {problem}")
    if left_out:
        warnings.warn(
            f"{argument}: left out {', '.join(dict.fromkeys(left_out))}: nn.MultiheadAttention uses their weights "
            "without calling them, so that their calls cannot be seen",
            stacklevel=3,
        )
    return {name: module for name, module in modules.items() if name in chosen}


def _selectors(where: Where, argument: str) -> list[type | str | Callable[[str, nn.Module], bool]]:
    if isinstance(where, (str, type)) or callable(where):
        return [where]
    chosen = list(where)
    wrong = [each for each in chosen if not isinstance(each, (str, type))]
    if wrong or not chosen:
        got = wrong[0] if wrong else where
        raise ValueError(f"{argument}: found {got!r}; expected types, names, or one function of name and module")
    return list(chosen)


def _matches(selector: type | str | Callable[[str, nn.Module], bool], name: str, module: nn.Module) -> bool:
    if isinstance(selector, type):
        return isinstance(module, selector)
    if isinstance(selector, str):
        return fnmatchcase(name, selector)
    return bool(selector(name, module))


def _title(selector: object) -> str:
    if isinstance(selector, type):
        return selector.__name__
    return repr(selector) if isinstance(selector, str) else "the function"


def _what_there_is(modules: dict[str, nn.Module], selector: object) -> str:
    linear = {name: module for name, module in modules.items() if is_linear(module)}
    if not linear:
        return "the model has no linear layer: no nn.Linear, SparseProtoLinear or Conv1D of transformers"
    if isinstance(selector, str) and (near := difflib.get_close_matches(selector, linear, n=3)):
        return f"did you mean {' or '.join(map(repr, near))}?"
    kinds: dict[str, list[str]] = {}
    for name, module in linear.items():
        kinds.setdefault(type(module).__name__, []).append(name)
    return "the model's linear layers are: " + "; ".join(
        f"{len(names)} {kind}, such as {names[0]!r}" for kind, names in kinds.items()
    )


def _problem(name: str, module: nn.Module, uncalled: bool) -> str | None:
    """Why the calls of a selected layer cannot be captured; None where they can."""
    title = f"{name!r} is a {type(module).__name__}"
    if not is_linear(module):
        return f"{title}; expected an nn.Linear, a SparseProtoLinear or a Conv1D of transformers"
    if uncalled:
        return f"{title} inside of an nn.MultiheadAttention, which uses its weight without calling it; select others"
    own = type(module).forward
    if isinstance(module, nn.Linear) and own is not nn.Linear.forward:
        return f"{title} with a forward of its own, so that its output need not be x W^T + b; select an nn.Linear"
    if isinstance(module, nn.Linear) and isinstance(getattr(module, "weight", None), UninitializedParameter):
        return f"{title} without a weight yet; run the model once before"
    return None


def _without_calls(model: nn.Module) -> set[nn.Module]:
    return {each.out_proj for each in model.modules() if isinstance(each, nn.MultiheadAttention)}
