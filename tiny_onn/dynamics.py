"""LearningDynamics: one backward pass, two orthogonal streams.

The task loss's gradient goes to the computation parameters. The meta-loss's goes to P and G of each layer, from that
layer's detached input: learning is local. Every worker computes both on its own shard; all that it sends is sums.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tiny_onn.arm import Arm, as_arm, configure
from tiny_onn.capture import Storage
from tiny_onn.distributed import check_summed, reductions, sum_over_workers
from tiny_onn.engine import Engine
from tiny_onn.fused import fused_pass
from tiny_onn.hooks import hooks_pass
from tiny_onn.layers import computation_parameters, router_parameters, sparse_layers
from tiny_onn.learning_cost import LearningCost, TokenCost
from tiny_onn.regulation import after_step
from tiny_onn.routing_health import Health

EngineName = Literal["hooks", "fused"]


@dataclass(frozen=True)
class DynamicsReport:
    """What a step did; detached, on the device, already global.

    `task_loss` and `meta_loss` in nats, the latter NaN in an arm without Goodness. `gradient_norm` of the computation
    stream before clipping. `health` by module, where it was asked for.
    """

    task_loss: Tensor
    meta_loss: Tensor
    gradient_norm: Tensor
    health: dict[str, Health] | None


class NonFiniteStep(RuntimeError):
    """A step whose loss or gradient is not finite: nothing was changed, and all workers know, for all of it is global.

    Attributes:
        report: what was seen.
        quantities: which of "task loss", "meta-loss", "gradient norm" and "router gradient norm" are not finite.
        parameters: those whose gradient is not finite, in the order of the backward pass: the first is where it began,
            unless a loss was not finite to begin with. There may be none, where a norm alone is too large to be told.
    """

    def __init__(self, report: DynamicsReport, quantities: tuple[str, ...], parameters: tuple[str, ...]) -> None:
        where = f"; first in the backward pass: {parameters[0]}" if parameters else ""
        super().__init__(f"non-finite {', '.join(quantities)}{where}")
        self.report, self.quantities, self.parameters = report, quantities, parameters

    def __reduce__(self) -> tuple[type, tuple[DynamicsReport, tuple[str, ...], tuple[str, ...]]]:
        return type(self), (self.report, self.quantities, self.parameters)


class LearningDynamics:
    """Turns one task loss into an update of both streams.

    Args:
        model: the bare model, not its DDP wrapper.
        arm: what teaches the router, through which gate; see `tiny_onn.arm`. A learning cost stands for the ADR's arm
            with that cost, None for `task_only`. The model's layers are configured for it, see `configure`.
        computation_optimizer: over `computation_parameters(model)`.
        router_optimizer: over `router_parameters(model)`.
        engine: "hooks" captures (ADR-0004) and takes any arm; "fused" is the single backward pass, for all but costs of
            a whole layer. The two agree to rounding.
        clip_norm: bound on the gradient norm of the computation stream.
        storage: see `capture`; of the hooks.
        use_compiler: compile the elementwise parts; see `tiny_onn.compiling.compiler_problem`.
        compile_measures: then compile what a logged step measures, too, which pays from about a hundred logged steps
            on. The measures differ by rounding.

    Raises:
        ValueError: engine "fused" with a cost of granularity "layer"; a cost that needs Adam's second moment with an
            optimizer that has none; two layers that share P or G, of which each has its own gradient; or a layer that
            the arm does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        arm: Arm | LearningCost | None,
        computation_optimizer: torch.optim.Optimizer,
        router_optimizer: torch.optim.Optimizer,
        *,
        engine: EngineName = "hooks",
        clip_norm: float = 1.0,
        storage: Storage = "reference",
        use_compiler: bool = False,
        compile_measures: bool = True,
    ) -> None:
        arm = as_arm(arm)
        if engine == "fused" and arm.measures_layers:
            raise ValueError("a cost of granularity 'layer' is measured after the backward pass; use engine='hooks'")
        if problem := second_moment_problem(arm, type(computation_optimizer)):
            raise ValueError(problem)
        _refuse_shared_routers(model)
        configure(model, arm)
        self.model, self.arm = model, arm
        self.computation_optimizer, self.router_optimizer = computation_optimizer, router_optimizer
        self.engine, self.clip_norm, self.storage, self.use_compiler = engine, clip_norm, storage, use_compiler
        self.compile_measures = compile_measures
        self._computation, self._router = computation_parameters(model), router_parameters(model)

    @property
    def cost(self) -> LearningCost | None:
        """The arm's learning cost; None without Goodness."""
        return self.arm.cost

    @property
    def router_in_backward(self) -> bool:
        """Whether P and G get their gradients in the backward pass, as all others do; see `distribute`."""
        return self.arm.teacher.task != 0 or self.engine == "fused"

    def watch(
        self,
        valid: Tensor | None = None,
        *,
        labels: Tensor | int,
        tokens: Tensor | int | None = None,
        observe: bool = False,
    ) -> AbstractContextManager[Engine]:
        """The context in which to run the forward passes and `compute_and_apply_gradients`.

        Args:
            valid: which tokens count, False for padding; see `Engine.use_valid`, also for several forward passes.
            labels: the number, over all workers, of labelled tokens that the task loss is divided by.
            tokens: the number of valid tokens over all workers, where it is known.
            observe: also measure routing health, which costs more than the meta-loss: a quarter of a plain step, or
                with few tokens three quarters of one.
        """
        moments = self._second_moments() if _needs_second_moment(self.cost) else {}
        return self._watch(valid, tokens, labels=labels, second_moments=moments, observe=observe)

    @contextmanager
    def _watch(
        self,
        valid: Tensor | None,
        tokens: Tensor | int | None,
        *,
        labels: Tensor | int,
        second_moments: dict[str, Tensor],
        observe: bool,
    ) -> Iterator[Engine]:
        reductions(self.model).passes = 0
        with ExitStack() as stack:
            if self.engine == "fused":
                if observe:  # to look at a call is to leave a compiled block; its kernels stay compiled
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                opened: AbstractContextManager[Engine] = fused_pass(
                    self.model,
                    self.arm,
                    valid=valid,
                    tokens=tokens,
                    labels=labels,
                    second_moments=second_moments,
                    observe=observe,
                    use_compiler=self.use_compiler,
                    compile_measures=self.compile_measures,
                )
            else:
                opened = hooks_pass(
                    self.model,
                    self.arm,
                    valid=valid,
                    labels=labels,
                    second_moments=second_moments,
                    observe=observe,
                    storage=self.storage,
                    use_compiler=self.use_compiler,
                    compile_measures=self.compile_measures,
                )
            yield stack.enter_context(opened)

    def compute_and_apply_gradients(self, task_loss: Tensor, engine: Engine) -> DynamicsReport:
        """Backward, meta-learning, one step of both optimizers; ADR-0004's method of this name.

        Args:
            task_loss: this worker's share: its sum over labelled tokens divided by the *global* number of them.
                Gradients must be summed over workers, not averaged; see `tiny_onn.distributed`.
            engine: of `watch`, open.

        Raises:
            CaptureError: a call cannot be trusted; no parameter has been changed.
            NonFiniteStep: a loss or a gradient is not finite, on any worker; no parameter has been changed on any.
        """
        try:
            task_loss.backward()
            check_summed(self.model)
            task, meta = engine.finish(task_loss)
            norm, router_norm = (_gradient_norm(each, task) for each in (self._computation, self._router))
            report = DynamicsReport(task, meta, norm, _over_workers(self._in_order(engine.health())))
            # All four are global, so all workers decide alike, without a word more between them.
            seen = {"task loss": task, "meta-loss": meta, "gradient norm": norm, "router gradient norm": router_norm}
            if self.arm.teacher.goodness is None:
                del seen["meta-loss"]  # NaN, as there is none
            finite = torch.stack([value.detach().double() for value in seen.values()]).isfinite()
            if not finite.all():
                wrong = tuple(name for name, good in zip(seen, finite.tolist(), strict=True) if not good)
                raise NonFiniteStep(report, wrong, self._parameters_without_finite_gradient())
            nn.utils.clip_grads_with_norm_(self._computation, self.clip_norm, norm)
            self.computation_optimizer.step()
            self.router_optimizer.step()
            self._regulate(engine)
        finally:
            self.computation_optimizer.zero_grad()
            self.router_optimizer.zero_grad()
        return report

    def _regulate(self, engine: Engine) -> None:
        layers = sparse_layers(self.model)
        for name, seen in engine.seen.items():
            layer = layers[name]
            state = layer.regulation_state
            assert layer.regulation is not None
            assert state is not None
            assert layer.density is not None
            layer.set_regulation_state(after_step(layer.regulation, state, seen, layer.density))

    def _parameters_without_finite_gradient(self) -> tuple[str, ...]:
        parameters = reversed(list(self.model.named_parameters()))
        return tuple(name for name, p in parameters if p.grad is not None and not p.grad.isfinite().all())

    def _in_order(self, health: dict[str, Health] | None) -> dict[str, Health] | None:
        """By the model's order, the same on all workers, not by that of the backward pass."""
        return health and {name: health[name] for name in sparse_layers(self.model) if name in health}

    def _second_moments(self) -> dict[str, Tensor]:
        state = self.computation_optimizer.state
        return {
            name: state[layer.mu_weight].get("exp_avg_sq", torch.zeros_like(layer.mu_weight.detach()))
            for name, layer in sparse_layers(self.model).items()
        }


_ADAMS = (torch.optim.Adam, torch.optim.AdamW)


def second_moment_problem(arm: Arm, optimizer: type[torch.optim.Optimizer]) -> str | None:
    """Why the arm's cost cannot be taken beside this optimizer of the computation stream; None where it can."""
    if not _needs_second_moment(arm.cost) or issubclass(optimizer, _ADAMS):
        return None
    return (
        "this learning cost needs Adam's second moment; expected the computation optimizer to be one of "
        f"{', '.join(each.__name__ for each in _ADAMS)}, found {optimizer.__name__}"
    )


def _needs_second_moment(cost: LearningCost | None) -> bool:
    return isinstance(cost, TokenCost) and cost.needs_second_moment


def _refuse_shared_routers(model: nn.Module) -> None:
    owners: dict[nn.Parameter, str] = {}
    for name, layer in sparse_layers(model).items():
        for attribute in ("proto_weight", "gate_param"):
            if (parameter := getattr(layer, attribute)) is None:
                continue
            owner = owners.setdefault(parameter, name)
            if owner != name:
                raise ValueError(
                    f"{owner!r} and {name!r} share one {attribute}, but a router learns from its own layer alone; "
                    "give each its own, or use one module in both places"
                )


def _gradient_norm(parameters: list[nn.Parameter], like: Tensor) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return nn.utils.get_total_norm(gradients).detach() if gradients else torch.zeros_like(like)


def _over_workers(health: dict[str, Health] | None) -> dict[str, Health] | None:
    if not health:
        return health
    flats = [h.flat() for h in health.values()]
    reduced = sum_over_workers(torch.cat(flats)).split([len(flat) for flat in flats])
    return {name: Health.from_flat(flat) for name, flat in zip(health, reduced, strict=True)}
