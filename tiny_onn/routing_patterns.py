"""Which experts do held-out tokens use, and do tasks use different ones? Counts that add up over calls and workers."""

import functools
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tiny_onn.distributed import sum_over_workers
from tiny_onn.layers import CallPoint, SparseProtoCall, sparse_layers
from tiny_onn.torch_private import may_have_compiled

CHUNK = 8  # neighbouring tokens of a chunk, as in BlockFFN's CLS_8
NOT_A_TASK = -1  # the number of a row whose task is not counted


class RoutingPatterns:
    """Counts of active (valid token, expert) pairs, by module and expert; with `tasks`, also by task and by chunk.

    An expert is active for a token where its routing weight is above 0. `active` [o]: tokens, by expert. `by_task`
    [t, o]: the same for each of `tasks` tasks. `unions` [o]: chunks in which the expert is active for any token. One
    tensor a module in each list. `tokens`, `chunks` and `task_tokens` [t] count the valid tokens of all calls of a
    module, the chunks and the tokens of each task. A chunk is 8 neighbouring valid tokens of a sequence; the chunks of
    a sequence do not overlap, and what is left at its end belongs to none.

    Made by `watch_routing`, which fills it in.
    """

    def __init__(self, names: list[str], experts: list[int], tasks: int, device: torch.device) -> None:
        def zeros(*size: int) -> Float[Tensor, "..."]:
            return torch.zeros(size, dtype=torch.float64, device=device)

        self.names, self.tasks = names, tasks
        self.active = [zeros(each) for each in experts]
        self.tokens, self.chunks = zeros(len(experts)), zeros(len(experts))
        self.unions = [zeros(each) for each in experts] if tasks else []
        self.by_task = [zeros(tasks, each) for each in experts] if tasks else []
        self.task_tokens = [zeros(tasks) for _ in experts] if tasks else []
        self._valid: Tensor | None = None
        self._rows: Tensor | None = None

    def use_rows(self, valid: Bool[Tensor, "b s"], tasks: Int[Tensor, " b"] | None = None) -> None:
        """Says of the forward pass that follows which tokens are valid, and which task each row belongs to.

        Args:
            valid: False for padding.
            tasks: numbers below `self.tasks`, or NOT_A_TASK; needed where tasks are counted.
        """
        assert not self.tasks or tasks is not None, "tasks are counted: which does each row belong to?"
        self._valid, self._rows = valid, tasks

    @torch.no_grad()
    def count(self, place: int, call: SparseProtoCall) -> None:
        """Adds a call of the module at `place` in `names`."""
        assert self._valid is not None, "use_rows() goes before each forward pass"
        weights = call.routing.weights()
        # As numbers, 0 and 1, which a CPU adds up several times faster than booleans: exact up to 2^24 tokens a row.
        active = torch.gt(weights, 0, out=torch.empty_like(weights)).mul_(self._valid[..., None])  # [b, s, o]
        by_row = active.sum(dim=1).double()
        self.active[place] += by_row.sum(dim=0)
        self.tokens[place] += self._valid.sum()
        if not self.tasks:
            return
        assert self._rows is not None
        known = self._rows != NOT_A_TASK
        self.by_task[place].index_add_(0, self._rows[known], by_row[known])
        self.task_tokens[place].index_add_(0, self._rows[known], self._valid.sum(dim=1)[known].double())
        whole = active.shape[1] // CHUNK * CHUNK
        full = self._valid[:, :whole].unflatten(1, (-1, CHUNK)).all(dim=2)
        union = active[:, :whole].unflatten(1, (-1, CHUNK)).amax(dim=2) * full[..., None]
        self.unions[place] += union.sum(dim=(0, 1))
        self.chunks[place] += full.sum()

    def sum_over_workers(self) -> None:
        """Adds up the counts of all workers, in place; every worker calls it, once."""
        parts = [self.tokens, self.chunks, *self.active, *self.unions, *self.by_task, *self.task_tokens]
        flat = sum_over_workers(torch.cat([part.flatten() for part in parts]))
        for part, summed in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(summed.view_as(part))

    def density(self) -> float:
        """The fraction of (valid token, expert) pairs with a routing weight above 0, mean over modules."""
        return _mean(a.sum() / (n * len(a)) for a, n in zip(self.active, self.tokens, strict=True))

    def dead_experts(self) -> float:
        """The fraction of experts that no valid token uses, mean over modules."""
        return _mean(
            (a == 0).double().mean() if n else a.new_tensor(torch.nan)
            for a, n in zip(self.active, self.tokens, strict=True)
        )

    def union_of_chunk(self) -> float:
        """The fraction of experts that any of 8 neighbouring tokens uses, mean over chunks, then modules.

        It is 1 - CLS_8 of BlockFFN (arXiv 2507.08771), the chunk-level sparsity: what has to be loaded for 8 tokens
        that are decoded together. From `density`, where all tokens of a chunk use the same experts, to 8 times that.
        """
        return _mean(u.sum() / (n * len(u)) for u, n in zip(self.unions, self.chunks, strict=True))

    def task_information(self) -> float:
        """RMI: the mutual information of task and active expert, in nats, mean over modules.

            f[t, e]  = part of task t's valid tokens for which expert e is active
            p(e | t) = f[t, e] / sum_e f[t, e]
            RMI      = H(mean_t p(e | t)) - mean_t H(p(e | t))

        Every task counts alike; tasks of which no token uses any expert are left out. 0 where all tasks use the experts
        alike, at most ln(min(tasks, experts)). With few tokens a task it is too high, as chance makes tasks differ.
        This is the form in Tiny-ONN's consistency study (task means of routing distributions), over the activation
        pattern in place of the weights. Its other form, the entropy of the joint state of all experts, has as many
        states as tokens once there are more than a few experts, and measures nothing then.
        """
        return _mean(map(_information, self._frequencies()))

    def task_distance(self) -> float:
        """ITJD: the Jaccard distance between the activation patterns of two tasks, mean over pairs, then modules.

            1 - sum_e min(f[t, e], f[u, e]) / sum_e max(f[t, e], f[u, e])        f as in `task_information`

        The Jaccard distance of sets where each expert is active for all or none of a task's tokens. 0 where two tasks
        use the experts alike, 1 where they share none. Pairs of which neither task uses any expert are left out.
        """
        return _mean(map(_distance, self._frequencies()))

    def _frequencies(self) -> Iterator[Float[Tensor, "t o"]]:
        """Of each module, f of the tasks that have tokens."""
        for counts, tokens in zip(self.by_task, self.task_tokens, strict=True):
            there = tokens > 0
            yield counts[there] / tokens[there, None]


@contextmanager
def watch_routing(model: nn.Module, tasks: int = 0) -> Iterator[RoutingPatterns]:
    """Counts what every SparseProtoLinear of the model routes in the forward passes under it.

    `use_rows` goes before each of them. Nothing is changed that the model computes; blocks that `compile_blocks` has
    compiled run eagerly, as what is compiled calls no hooks.

    Args:
        tasks: how many tasks are told apart; 0 counts neither tasks nor chunks.
    """
    layers = sparse_layers(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    patterns = RoutingPatterns(list(layers), [each.out_features for each in layers.values()], tasks, device)

    def hook(place: int, _module: nn.Module, inputs: tuple[SparseProtoCall], _output: Tensor) -> None:
        patterns.count(place, inputs[0])

    with ExitStack() as stack:
        if may_have_compiled():  # else nothing is compiled, and to import it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for place, layer in enumerate(layers.values()):
            point: CallPoint = layer.call_point
            stack.callback(point.register_forward_hook(functools.partial(hook, place)).remove)
        yield patterns


@contextmanager
def dominating_experts(model: nn.Module) -> Iterator[dict[str, Int[Tensor, "*b"]]]:
    """By module, for each token of the last forward pass under it, the expert with the largest routing weight.

    -1 where none dominates: the token is routed nowhere, or every expert speaks alike. Of a tie, the lowest number.
    Nothing is changed that the model computes.
    """
    experts: dict[str, Tensor] = {}

    @torch.no_grad()
    def hook(name: str, _module: nn.Module, inputs: tuple[SparseProtoCall], _output: Tensor) -> None:
        weights = inputs[0].routing.weights()
        largest, expert = weights.max(dim=-1)
        experts[name] = expert.where(largest > weights.min(dim=-1).values, -1)

    with ExitStack() as stack:
        if may_have_compiled():  # what is compiled calls no hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, layer in sparse_layers(model).items():
            stack.callback(layer.call_point.register_forward_hook(functools.partial(hook, name)).remove)
        yield experts


def _information(frequencies: Float[Tensor, "t o"]) -> Tensor:
    total = frequencies.sum(dim=1)
    given = frequencies[total > 0] / total[total > 0, None]
    return _entropy(given.mean(dim=0)) - _entropy(given).mean()


def _distance(frequencies: Float[Tensor, "t o"]) -> Tensor:
    apart, total = torch.cdist(frequencies, frequencies, p=1.0), frequencies.sum(dim=1)  # |a - b| = max - min
    most = (total[:, None] + total[None] + apart) / 2
    first, second = torch.triu_indices(len(total), len(total), offset=1, device=total.device)
    pairs = most[first, second] > 0
    return (apart[first, second] / most[first, second])[pairs].mean()


def _entropy(p: Float[Tensor, "*b o"]) -> Float[Tensor, " *b"]:
    return -torch.special.xlogy(p, p).sum(dim=-1)


def _mean(values: "Iterator[Tensor] | map[Tensor]") -> float:
    """The mean over modules that have a value; NaN where none has."""
    tensors = list(itertools.chain(values))
    return float(torch.stack(tensors).nanmean()) if tensors else float("nan")
