"""What did learning cost? One number for every expert, from captured gradients.

The learning cost is the only thing in which the ADR's own arms differ. A cost of granularity "token" is computed for
every token from grad_output, x and what is known of the weight; a cost of granularity "layer" is computed from the
weight gradient, in which the tokens of the whole (global) batch are already summed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.arms import canonical
from tiny_onn.gates import imported
from tiny_onn.mas import EPS


class WeightState(NamedTuple):
    """What a token cost may know of W beside the call: its value, and Adam's second moment of its gradient.

    `second_moment` is there only for a cost that says it `needs_second_moment`; zeros before the first step.
    """

    weight: Float[Tensor, "o i"]
    second_moment: Float[Tensor, "o i"] | None = None


@dataclass(frozen=True)
class TokenCost:
    """A learning cost with one value for each token and expert.

    `measure(grad_output [N, O], x [N, I], weight: WeightState) -> cost [N, O]`, finite, non-negative, of the type that
    it was given, for any N, O and I; its arguments stay as they are. Its scale does not matter: Goodness divides each
    token's costs by the largest.
    """

    measure: Callable[[Tensor, Tensor, WeightState], Tensor]
    needs_second_moment: bool = False
    granularity: Literal["token"] = "token"


@dataclass(frozen=True)
class LayerCost:
    """A learning cost with one value for each expert, shared by all tokens.

    `measure(weight_gradient [O, I]) -> cost [O]`, where the gradient is summed over the global batch; otherwise as of
    TokenCost.
    """

    measure: Callable[[Tensor], Tensor]
    granularity: Literal["layer"] = "layer"


LearningCost = TokenCost | LayerCost


def per_token(
    grad_output: Float[Tensor, "n o"], x: Float[Tensor, "n i"], _: WeightState | None = None
) -> Float[Tensor, "n o"]:
    """C[n,o] = ||grad_output[n,o] x[n,:]||_2 = |grad_output[n,o]| ||x[n,:]||_2, exactly, without the [n,o,i] tensor."""
    return grad_output.abs() * torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def relative(grad_output: Float[Tensor, "n o"], x: Float[Tensor, "n i"], weight: WeightState) -> Float[Tensor, "n o"]:
    """`per_token` / (||W[o,:]||_2 + EPS): the gradient as a fraction of the weight that it would change.

    Unlike `per_token` it does not cancel against relevance in Goodness (docs/decision-record.md).
    """
    sizes = torch.linalg.vector_norm(weight.weight, dim=-1).to(x.dtype)
    return per_token(grad_output, x) / (sizes + EPS)


def fisher(grad_output: Float[Tensor, "n o"], x: Float[Tensor, "n i"], weight: WeightState) -> Float[Tensor, "n o"]:
    """|grad_output[n,o]| sqrt(sum_i x[n,i]^2 / (sqrt(v[o,i]) + EPS)): the gradient in the metric of Adam's diagonal.

    v is Adam's second moment of W, a running diagonal of the empirical Fisher information: a step along a direction in
    which gradients have been small is dear. At v = 0, before the first step, it ranks experts as `per_token` does.
    """
    assert weight.second_moment is not None
    metric = 1 / (weight.second_moment.to(x.dtype).sqrt() + EPS)
    return grad_output.abs() * (x.square() @ metric.T).sqrt()


def aggregated(weight_gradient: Float[Tensor, "o i"]) -> Float[Tensor, " o"]:
    """C[o] = ||W.grad[o,:]||_2: what the ADR replaces. All tokens are summed before the norm is taken."""
    return torch.linalg.vector_norm(weight_gradient, dim=-1)


def metric_only(weight_gradient: Float[Tensor, "o i"]) -> Float[Tensor, " o"]:
    """C[o] = mean_i |W.grad[o,i]|: ADR ALT-005, another metric on the same aggregated gradient."""
    return weight_gradient.abs().mean(dim=-1)


def metric_max(weight_gradient: Float[Tensor, "o i"]) -> Float[Tensor, " o"]:
    """C[o] = max_i |W.grad[o,i]|: a third metric, to test ALT-005 at the other end, where a single weight decides."""
    return weight_gradient.abs().amax(dim=-1)


@dataclass(frozen=True)
class PerTokenGradients:
    """The gradients dW[n,o,i] = grad_output[n,o] x[n,i] of every token, kept as their two factors.

    Each is a rank-1 matrix, so the factors (n(o + i) numbers) say all that the full tensor (n o i numbers) does.
    """

    grad_output: Float[Tensor, "n o"]
    x: Float[Tensor, "n i"]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, tokens: int | slice | Tensor) -> Tensor:
        """The full gradients of some tokens: [o, i] for an int, [k, o, i] for a slice or an index."""
        return torch.einsum("...o,...i->...oi", self.grad_output[tokens], self.x[tokens])

    def chunks(self, tokens: int) -> Iterator[Float[Tensor, "k o i"]]:
        """The full gradients, `tokens` of them at a time."""
        for start in range(0, len(self), tokens):
            yield self[start : start + tokens]

    def sum(self) -> Float[Tensor, "o i"]:
        """Summed over the tokens: what autograd calls the weight's gradient."""
        return torch.einsum("no,ni->oi", self.grad_output, self.x)

    def dot(self, direction: Float[Tensor, "o i"]) -> Float[Tensor, " n"]:
        """Every token's <dW[n], direction>, as in a score of influence; without the [n, o, i] tensor."""
        return ((self.grad_output @ direction) * self.x).sum(dim=-1)

    def norms(self) -> Float[Tensor, "n o"]:
        """Every expert's gradient norm for every token."""
        return per_token(self.grad_output, self.x)


def per_token_gradients(grad_output: Float[Tensor, "*b o"], x: Float[Tensor, "*b i"]) -> PerTokenGradients:
    """Per-token weight gradients of a captured call, its leading axes flattened to n tokens; lazy (ADR step 4)."""
    return PerTokenGradients(grad_output.reshape(-1, grad_output.shape[-1]), x.reshape(-1, x.shape[-1]))


def per_token_einsum(
    grad_output: Float[Tensor, "n o"], x: Float[Tensor, "n i"], _: WeightState | None = None, chunk: int = 64
) -> Float[Tensor, "n o"]:
    """`per_token` as ADR-0004 writes it, `chunk` tokens at a time: einsum, then norm. An oracle; O times the memory."""
    costs = [torch.linalg.vector_norm(part, dim=-1) for part in per_token_gradients(grad_output, x).chunks(chunk)]
    return torch.cat(costs) if costs else torch.zeros_like(grad_output)  # a worker may have no valid token


def per_token_vmap(
    grad_output: Float[Tensor, "n o"], x: Float[Tensor, "n i"], _: WeightState | None = None, chunk: int = 64
) -> Float[Tensor, "n o"]:
    """`per_token` by ALT-001: torch.func.vmap over tokens of the vector-Jacobian product of the linear map."""
    if not len(x):
        return torch.zeros_like(grad_output)  # vmap knows no empty axis
    weight = x.new_zeros(grad_output.shape[-1], x.shape[-1])

    def one_token(g: Tensor, token: Tensor) -> Tensor:
        pull_back = torch.func.vjp(lambda w: w @ token, weight)[1]
        return torch.linalg.vector_norm(pull_back(g)[0], dim=-1)

    return torch.func.vmap(one_token, chunk_size=chunk)(grad_output, x)


class _CostThroughBackward(torch.autograd.Function):
    """A linear map whose backward also carries the per-token costs out, as the gradient of an input that it ignores.

    ALT-004 says that backward can return nothing but the gradients of the inputs. So the costs are made one of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad_output,) = grads
        x, weight = ctx.saved_tensors
        return grad_output @ weight, grad_output.T @ x, per_token_einsum(grad_output, x)


def per_token_function(
    grad_output: Float[Tensor, "n o"], x: Float[Tensor, "n i"], _: WeightState | None = None
) -> Float[Tensor, "n o"]:
    """`per_token` by ALT-003: a custom autograd.Function that hands the costs out of its backward."""
    with torch.enable_grad():
        slot = torch.zeros_like(grad_output, requires_grad=True)
        weight = x.new_zeros(grad_output.shape[-1], x.shape[-1])
        y = _CostThroughBackward.apply(x.detach(), weight, slot)
        (costs,) = torch.autograd.grad(y, slot, grad_output)
    return costs


COSTS: dict[str, LearningCost] = {
    "per_token": TokenCost(per_token),
    "aggregated": LayerCost(aggregated),
    "metric_only": LayerCost(metric_only),
    "relative": TokenCost(relative),
    "fisher": TokenCost(fisher, needs_second_moment=True),
    "metric_max": LayerCost(metric_max),
    "per_token_einsum": TokenCost(per_token_einsum),
    "per_token_vmap": TokenCost(per_token_vmap),
    "per_token_function": TokenCost(per_token_function),
}
"""The learning costs that come with the package; each is also the name of the ADR's arm with that cost."""


def learning_cost(name: str) -> LearningCost | None:
    """A learning cost by name; None for "task_only" (once "none"), whose router the task loss trains.

    `name` is one of `COSTS`, or "package.module:attribute" for a TokenCost or LayerCost of one's own.

    Raises:
        ValueError: there is no such cost, the attribute is neither a TokenCost nor a LayerCost, or what it returns is
            no learning cost: it is tried on a few numbers.
    """
    if name in COSTS:
        return COSTS[name]
    if canonical(name) == "task_only":
        return None
    if ":" not in name:
        raise ValueError(f"unknown learning cost {name!r}; there are {', '.join(COSTS)}, or package.module:attribute")
    cost = imported(name, "learning cost", (TokenCost, LayerCost))
    from tiny_onn.cost_contract import cost_problem  # which knows the classes above

    if problem := cost_problem(cost):  # type: ignore[arg-type]
        raise ValueError(f"learning cost {name!r} {problem}")
    return cost  # type: ignore[return-value]
