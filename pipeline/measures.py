"""All metrics: what each is called, how it is measured and how it is shown. A new one is one entry in METRICS.

The workers write what an entry measures; MLflow, the report, its tables as data and the leaderboard show it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tiny_onn.dynamics import DynamicsReport
    from tiny_onn.routing_health import Health
    from tiny_onn.routing_patterns import RoutingPatterns

# Everything is `group/name`; MLflow draws one section of charts a group.
TASK_LOSS = "train/task_loss"  # nats per labelled token, global mean
META_LOSS = "train/meta_loss"  # JSD in nats, mean over valid tokens, then modules
LEARNING_RATE = "train/learning_rate"
ROUTER_LEARNING_RATE = "train/router_learning_rate"
GRADIENT_NORM = "train/gradient_norm"  # of the computation stream, before clipping
SKIPPED_STEPS = "train/skipped_steps"  # steps so far that were not finite and changed nothing
EPOCH = "train/epoch"  # with data.order: sequential, the pass over the current task's rows
TASK_NUMBER = "train/task"  # with data.order: sequential, which task this is, from 1
TOKENS_PER_SECOND = "speed/tokens_per_second"  # valid tokens of all workers, waiting for their batches included
STEP_SECONDS = "speed/step_seconds"  # median over the steps since the last log, without waiting for batches
PEAK_MEMORY_MIB = "speed/peak_memory_mib"  # of the worker of rank 0, so far; of its GPU where it has one

# Of the tasks that a model is judged by, each as `<split>/<measure>`: the split is held_out, tasks kept back from the
# training tasks, or evaluation, the data set's own evaluation tasks.
HELD_OUT_LOSS = "held_out/loss"  # nats per labelled token
HELD_OUT_TOKEN_ACCURACY = "held_out/token_accuracy"
EVALUATION_LOSS = "evaluation/loss"
EVALUATION_TOKEN_ACCURACY = "evaluation/token_accuracy"
# The names that older runs were recorded under, and that older configs use.
RENAMED = {
    "eval/loss": HELD_OUT_LOSS,
    "eval/token_accuracy": HELD_OUT_TOKEN_ACCURACY,
    "eval/pairs_exact": "held_out/pairs_exact",
    "eval/tasks_exact": "held_out/tasks_exact",
}

# Routing on the held-out tokens, a mean over modules each (tiny_onn.routing_patterns); the last three at the end only.
DENSITY = "held_out/density"  # fraction of (valid token, expert) with routing weight > 0
DEAD_EXPERTS = "held_out/dead_experts"  # fraction of experts that no held-out token uses
UNION_OF_CHUNK = "held_out/union_of_8"  # fraction of experts that any of 8 neighbouring tokens uses
TASK_INFORMATION = "held_out/task_information"  # RMI: I(task; active expert) in nats
TASK_DISTANCE = "held_out/task_distance"  # ITJD: Jaccard distance between the patterns of two tasks

# With data.order: sequential, on a sample of the training rows of tasks that were finished before the current one.
FORGETTING_LOSS = "forgetting/loss"  # nats per labelled token, a mean over these tasks
FORGETTING_INCREASE = "forgetting/increase"  # the same less the loss right after each task's last step

# The held-out loss less the baselines' at the same density, seed by seed: made by the report, and no worker's metric.
EXCESS = "excess"

OBSERVED = "observer/"  # before the name of what a user's own `training.observer` measures

# Routing health, each as `health/L<layer>` and `health.by_module/L<layer>.<projection>`.
ACTIVATION_RATE = "activation_rate"  # fraction of (valid token, expert) with routing weight > 0
FRACTION_GOOD = "fraction_good"  # fraction of (valid token, expert) judged good
ROUTED_NOWHERE = "routed_nowhere"  # fraction of valid tokens with no active expert
NEVER_ACTIVE = "never_active"  # fraction of experts that no token of the batch uses
EFFECTIVE_EXPERTS = "effective_experts"  # exp(entropy of the mean routing distribution)
MUTUAL_INFORMATION = "mutual_information"  # selectivity: I(expert; token) in nats
RANK_CORRELATION_CONTRIBUTION = "rank_correlation_contribution"  # of Goodness with |masked_output|; see Health
RANK_CORRELATION_RELEVANCE = "rank_correlation_relevance"  # of Goodness with |grad_output|
RANK_CORRELATION_COST = "rank_correlation_cost"  # of Goodness with the learning cost


@dataclass(frozen=True)
class Evaluated:
    """What a pass over the rows of a split came to, over all workers: sums over labelled tokens, and the routing."""

    loss: float
    right: float
    labelled: float
    routed: "RoutingPatterns"
    patterns: bool  # whether tasks were compared, as at the end of training


def _of_patterns(evaluated: Evaluated, measure: Callable[[], float]) -> float | None:
    """A measure that compares tasks: None if it was not counted, or is undefined, as with a single task."""
    value = measure() if evaluated.patterns else math.nan
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Shown:
    """A column of the report, and of results.csv and results.parquet, where it is called `key`.

    `scale` and `digits` are for people to read. `best` says which end is better, if any; `of_density`: only among arms
    of equal density. `tested`: differences get a p-value. `place`: of a metric by layer, which layer's value, or the
    mean over layers. `primary`: a study's `primary_metric` may name it.
    """

    key: str
    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3
    best: Literal["lowest", "highest"] | None = None
    of_density: bool = False
    tested: bool = True
    place: Literal["first", "middle", "last", "mean"] | None = None
    primary: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric, whole. It is measured by one of `of_step`, `of_module` and `of_split`, or by name elsewhere.

    Attributes:
        name: `group/name`; of a metric with `by_layer` what stands before /L<layer>.
        of_step: from a logged training step, the same on all workers.
        of_module: from the routing health of a SparseProtoLinear in a logged step, sums over all workers. The metric is
            written for each layer, a mean over its modules, and where the step is evaluated for each module.
        of_split: from the held-out rows, and by the name that `of_split` gives from the evaluation rows. None where it
            cannot be measured on these rows, and so is left out.
        by_layer: whether it is a metric of routing health, by layer and module; with `of_module` it is.
        of_goodness: whether arms without Goodness lack it.
        shown: columns of the report; none by default.
        leaderboard: a column of MLflow's table: always, or where any run has recorded it; of a metric by layer of the
            middle layer, or of three places.
    """

    name: str
    of_step: "Callable[[DynamicsReport], float] | None" = None
    of_module: "Callable[[Health], float] | None" = None
    of_split: "Callable[[Evaluated], float | None] | None" = None
    by_layer: bool = False
    of_goodness: bool = False
    shown: tuple[Shown, ...] = ()
    leaderboard: Literal["always", "recorded", "middle", "places"] | None = None


# In the order in which the report shows them.
METRICS: tuple[Metric, ...] = (
    Metric(TASK_LOSS, of_step=lambda step: float(step.task_loss)),
    Metric(META_LOSS, of_step=lambda step: float(step.meta_loss), of_goodness=True),
    Metric(GRADIENT_NORM, of_step=lambda step: float(step.gradient_norm)),
    Metric(
        HELD_OUT_LOSS,
        of_split=lambda evaluated: evaluated.loss / evaluated.labelled,
        shown=(Shown("held_out_loss", "held-out loss", "nats", 1, 4, "lowest", of_density=True, primary=True),),
        leaderboard="always",
    ),
    Metric(
        DENSITY,
        of_split=lambda evaluated: evaluated.routed.density(),
        shown=(Shown("density", "active, held-out", "%", 100, 2, primary=True),),
        leaderboard="recorded",
    ),
    Metric(
        HELD_OUT_TOKEN_ACCURACY,
        of_split=lambda evaluated: evaluated.right / evaluated.labelled,
        shown=(Shown("token_accuracy", "token accuracy", "%", 100, 2, "highest", of_density=True, primary=True),),
        leaderboard="always",
    ),
    Metric(
        EVALUATION_LOSS,
        shown=(Shown("evaluation_loss", "evaluation loss", "nats", 1, 4, "lowest", of_density=True, primary=True),),
        leaderboard="recorded",
    ),
    Metric(
        EVALUATION_TOKEN_ACCURACY,
        shown=(Shown("evaluation_accuracy", "evaluation token accuracy", "%", 100, 2, "highest", of_density=True),),
        leaderboard="recorded",
    ),
    Metric(
        FORGETTING_LOSS,
        shown=(
            Shown("forgetting_loss", "loss on earlier tasks", "nats", 1, 4, "lowest", of_density=True, primary=True),
        ),
        leaderboard="recorded",
    ),
    Metric(
        FORGETTING_INCREASE,
        shown=(
            Shown(
                "forgetting_increase",
                "forgetting",
                "nats",
                1,
                4,
                "lowest",
                of_density=True,
                primary=True,
            ),
        ),
        leaderboard="recorded",
    ),
    Metric(
        ACTIVATION_RATE,
        by_layer=True,
        shown=(
            Shown("active_first", "active, first layer", "%", 100, 2, place="first"),
            Shown("active_middle", "active, middle layer", "%", 100, 2, place="middle", primary=True),
            Shown("active_last", "active, last layer", "%", 100, 2, place="last"),
        ),
        leaderboard="places",
    ),
    Metric(
        FRACTION_GOOD,
        by_layer=True,
        of_goodness=True,
        shown=(Shown("fraction_good", "judged good", "%", 100, 2, place="mean"),),
        leaderboard="middle",
    ),
    Metric(
        MUTUAL_INFORMATION,
        by_layer=True,
        shown=(Shown("selectivity", "selectivity", "nats", 1, 3, place="mean", primary=True),),
        leaderboard="middle",
    ),
    Metric(ROUTED_NOWHERE, by_layer=True),
    Metric(NEVER_ACTIVE, by_layer=True),
    Metric(EFFECTIVE_EXPERTS, by_layer=True),
    Metric(RANK_CORRELATION_CONTRIBUTION, by_layer=True, of_goodness=True),
    Metric(RANK_CORRELATION_RELEVANCE, by_layer=True, of_goodness=True),
    Metric(RANK_CORRELATION_COST, by_layer=True, of_goodness=True),
    Metric(
        TASK_INFORMATION,
        of_split=lambda evaluated: _of_patterns(evaluated, evaluated.routed.task_information),
        shown=(Shown("task_information", "RMI", "nats", 1, 4, primary=True),),
    ),
    Metric(
        TASK_DISTANCE,
        of_split=lambda evaluated: _of_patterns(evaluated, evaluated.routed.task_distance),
        shown=(Shown("task_distance", "ITJD", "", 1, 3, primary=True),),
    ),
    Metric(
        UNION_OF_CHUNK,
        of_split=lambda evaluated: _of_patterns(evaluated, evaluated.routed.union_of_chunk),
        shown=(Shown("union_of_8", "union of 8 tokens", "%", 100, 2, primary=True),),
    ),
    Metric(
        DEAD_EXPERTS,
        of_split=lambda evaluated: evaluated.routed.dead_experts(),
        shown=(Shown("dead_experts", "dead experts", "%", 100, 2, primary=True),),
    ),
    Metric(
        STEP_SECONDS, shown=(Shown("step_seconds", "step time", "ms", 1000, 0, tested=False),), leaderboard="always"
    ),
    Metric(TOKENS_PER_SECOND, shown=(Shown("tokens_per_second", "tokens per second", "1/s", 1, 0, tested=False),)),
    Metric(PEAK_MEMORY_MIB, shown=(Shown("peak_memory", "peak memory", "MiB", 1, 0, tested=False),)),
)


HEALTH = tuple(metric.name for metric in METRICS if metric.by_layer or metric.of_module)  # as <name>/L<layer>
OF_GOODNESS = tuple(metric.name for metric in METRICS if metric.of_goodness)


def primary_metrics() -> dict[str, str]:
    """What a study's `primary_metric` may name, and the key of the report's column for it."""
    names = {EXCESS: EXCESS}
    for metric in METRICS:
        for shown in metric.shown:
            if shown.primary:
                names[shown.key if metric.name in HEALTH else metric.name] = shown.key
    return names


def score_of(metric: str) -> str:
    """NAME of held_out/NAME where that is no metric of ours, and so may be a score of the data's task; else ""."""
    group, _, name = metric.partition("/")
    ours = {each.name for each in METRICS}
    return name if group == "held_out" and name.isidentifier() and metric not in ours else ""


def of_split(split: str, metric: str) -> str:
    """A metric of the held-out tasks, by the name that it has for a split: held_out or evaluation."""
    return f"{split}/{metric.removeprefix('held_out/')}"


def current_name(metric: str) -> str:
    """The metric's name today, also where it is given by the name that it had in older runs."""
    return RENAMED.get(metric, metric)


def by_layer(measure: str, layer: int) -> str:
    """The metric of a whole layer: the mean over its projections."""
    return f"{measure}/L{layer}"


def by_module(measure: str, layer: int, projection: str) -> str:
    """The metric of one SparseProtoLinear; `projection` is q, k, v or o."""
    return f"{measure}.by_module/L{layer}.{projection}"
