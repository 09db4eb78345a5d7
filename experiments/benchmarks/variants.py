"""One training step of one model in every way that is compared.

All of them train the same model on the same tokens: forward, backward, the router's gradient, clipping, two AdamW.

    plain_eager      no meta-learning: the task loss trains everything
    plain_compiled   the same, every block by torch.compile
    fused            the single-pass engine in compiled blocks
    fused_elementwise  the single-pass engine, only its elementwise parts compiled: what is quick to compile
    fused_observed   fused_elementwise in a step that also measures routing health, as every logged step does
    hooks            ADR-0004's capture, factored norms, elementwise parts compiled
    hooks_observed   hooks, likewise
    two_pass         the same signals, then a second backward pass through the routing while the graph is retained
    einsum           two_pass with the whole [tokens, experts, inputs] gradient of every layer built by einsum
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tiny_onn.capture import capture
from tiny_onn.compiling import compiler_problem
from tiny_onn.dynamics import LearningDynamics
from tiny_onn.layers import computation_parameters, router_parameters
from tiny_onn.learning_cost import TokenCost, WeightState, learning_cost, per_token_gradients
from tiny_onn.mas import mas
from tiny_onn.model import GridTransformer
from tiny_onn.objectives import JSD
from tiny_onn.signals import GOODNESS, Moment, token_signals

NAMES = (
    "plain_eager",
    "plain_compiled",
    "fused",
    "fused_elementwise",
    "fused_observed",
    "hooks",
    "hooks_observed",
    "two_pass",
    "einsum",
)
COMPILED = ("plain_compiled", "fused", "fused_elementwise", "fused_observed")
_ELEMENTWISE = ("fused_elementwise", "fused_observed", "hooks", "hooks_observed")
DEFAULT = "fused_elementwise"  # what `training.engine: auto` and `training.compile: auto` come to with a compiler,
DEFAULT_OF_LONG_RUNS = "fused"  # and from 5,000 steps on
VOCABULARY = 16


@dataclass(frozen=True)
class Size:
    """Of a model and its step: one sequence of `seq` tokens."""

    hidden: int
    layers: int
    seq: int
    device: str = "cpu"
    autocast: bool = False

    @property
    def einsum_bytes(self) -> int:
        """Of one layer's per-token gradients, built whole, in float32 also under autocast."""
        return 4 * self.seq * self.hidden**2


class Step:
    """A training step to be called again and again. `router_gradients()` is what the router would learn from next."""

    def __init__(self, variant: str, size: Size) -> None:
        self.size = size
        device = torch.device(size.device)
        torch.manual_seed(0)
        plain = variant.startswith("plain")
        self._model = GridTransformer(
            vocabulary=VOCABULARY,
            coordinates=32,
            hidden=size.hidden,
            layers=size.layers,
            heads=max(1, size.hidden // 32),
        ).to(device)
        if variant in ("plain_compiled", "fused"):
            self._model.compile_blocks()
        self._dynamics = LearningDynamics(
            self._model,
            None if plain else learning_cost("per_token"),
            torch.optim.AdamW(computation_parameters(self._model), lr=1e-3, fused=True),
            torch.optim.AdamW(router_parameters(self._model), lr=1e-3, fused=True),
            engine="fused" if variant.startswith("fused") else "hooks",
            use_compiler=variant in _ELEMENTWISE and compiler_problem(device) is None,
        )
        self._observe = variant.endswith("_observed")
        self._tokens = torch.randint(VOCABULARY, (1, size.seq), device=device)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=size.autocast)
        cost = TokenCost(_whole_einsum) if variant == "einsum" else TokenCost(_factored)
        self._two_pass = cost if variant in ("two_pass", "einsum") else None
        self.state_bytes = 4 * sum(4 * p.numel() for p in self._model.parameters())  # it, its gradient, Adam's two

    def _loss(self) -> Tensor:
        with self._autocast:
            logits = self._model(self._tokens, self._tokens, self._tokens)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), self._tokens.flatten())

    def __call__(self) -> None:
        """One step."""
        if self._two_pass is not None:
            self._by_two_passes(self._two_pass)
            return
        labels = self._tokens.numel()
        with self._dynamics.watch(labels=labels, tokens=labels, observe=self._observe) as engine:
            self._dynamics.compute_and_apply_gradients(self._loss(), engine)

    def _by_two_passes(self, cost: TokenCost) -> None:
        router = router_parameters(self._model)
        labels = self._tokens.numel()
        with capture(self._model) as captured:
            loss = self._loss()
            loss.backward(retain_graph=True)
            losses = []
            for call in captured.calls():
                assert call.grad_output is not None
                x, masked_output = call.select(call.x), call.select(call.masked_output)
                moment = Moment(x, masked_output, call.select(call.grad_output) * labels)
                signals = token_signals(GOODNESS, cost, moment, WeightState(call.module.mu_weight.detach()))
                logits = call.module.routing(x, masked_output, learn=True).logits()
                losses.append(JSD.value(logits, mas(signals.goodness)).mean())
            gradients = torch.autograd.grad(torch.stack(losses).mean(), router)
        for parameter, gradient in zip(router, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(computation_parameters(self._model), 1.0)
        for optimizer in (self._dynamics.computation_optimizer, self._dynamics.router_optimizer):
            optimizer.step()
            optimizer.zero_grad()

    def router_gradients(self) -> list[Tensor]:
        """P's and G's gradients of the next step, which is then not taken."""
        seen: list[Tensor] = []
        optimizers = self._dynamics.computation_optimizer, self._dynamics.router_optimizer
        steps = [optimizer.step for optimizer in optimizers]
        optimizers[0].step = lambda: None  # type: ignore[method-assign, assignment]
        optimizers[1].step = lambda: seen.extend(  # type: ignore[method-assign, assignment]
            p.grad.clone() for p in router_parameters(self._model) if p.grad is not None
        )
        try:
            self()
        finally:
            for optimizer, step in zip(optimizers, steps, strict=True):
                optimizer.step = step  # type: ignore[method-assign]
        return seen


def build(variant: str, size: Size) -> Callable[[], object]:
    """A step by its name."""
    return Step(variant, size)


def _factored(grad_output: Tensor, x: Tensor, _: WeightState) -> Tensor:
    return per_token_gradients(grad_output, x).norms()


def _whole_einsum(grad_output: Tensor, x: Tensor, _: WeightState) -> Tensor:
    """ADR-0004's own: every token's whole gradient, then its norm."""
    return torch.linalg.vector_norm(torch.einsum("no,ni->noi", grad_output, x), dim=-1)
