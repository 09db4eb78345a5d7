"""The names of all metrics: what the workers write, MLflow shows and the report reads."""

# Everything is `group/name`; MLflow draws one section of charts a group.
TASK_LOSS = "train/task_loss"  # nats per labelled token, global mean
META_LOSS = "train/meta_loss"  # JSD in nats, mean over valid tokens, then modules
LEARNING_RATE = "train/learning_rate"
ROUTER_LEARNING_RATE = "train/router_learning_rate"
GRADIENT_NORM = "train/gradient_norm"  # of the computation stream, before clipping
SKIPPED_STEPS = "train/skipped_steps"  # steps so far that were not finite and changed nothing
EPOCH = "train/epoch"
TOKENS_PER_SECOND = "speed/tokens_per_second"  # valid tokens of all workers, waiting for their batches included
STEP_SECONDS = "speed/step_seconds"  # median over the steps since the last log, without waiting for batches
PEAK_MEMORY_MIB = "speed/peak_memory_mib"  # of the worker of rank 0, so far; of its GPU where it has one

# Of the tasks that a model is judged by, each as `<split>/<measure>`: the split is held_out, tasks kept back from the
# training tasks, or evaluation, the data set's own evaluation tasks.
HELD_OUT_LOSS = "held_out/loss"  # nats per labelled token
HELD_OUT_TOKEN_ACCURACY = "held_out/token_accuracy"
HELD_OUT_PAIRS_EXACT = "held_out/pairs_exact"  # fraction of test pairs decoded without a fault
HELD_OUT_TASKS_EXACT = "held_out/tasks_exact"  # fraction of tasks with every test pair right
HELD_OUT_PASS_AT_2 = "held_out/pass_at_2"  # fraction of test pairs that one of two attempts gets right
EVALUATION_LOSS = "evaluation/loss"
EVALUATION_TOKEN_ACCURACY = "evaluation/token_accuracy"
EVALUATION_PAIRS_EXACT = "evaluation/pairs_exact"
EVALUATION_TASKS_EXACT = "evaluation/tasks_exact"
EVALUATION_PASS_AT_2 = "evaluation/pass_at_2"
# The names that older runs were recorded under, and that older configs use.
RENAMED = {
    "eval/loss": HELD_OUT_LOSS,
    "eval/token_accuracy": HELD_OUT_TOKEN_ACCURACY,
    "eval/pairs_exact": HELD_OUT_PAIRS_EXACT,
    "eval/tasks_exact": HELD_OUT_TASKS_EXACT,
}

# Routing on the held-out tokens, a mean over modules each (tiny_onn.routing_patterns); the last three at the end only.
DENSITY = "held_out/density"  # fraction of (valid token, expert) with routing weight > 0
DEAD_EXPERTS = "held_out/dead_experts"  # fraction of experts that no held-out token uses
UNION_OF_CHUNK = "held_out/union_of_8"  # fraction of experts that any of 8 neighbouring tokens uses
TASK_INFORMATION = "held_out/task_information"  # RMI: I(task; active expert) in nats
TASK_DISTANCE = "held_out/task_distance"  # ITJD: Jaccard distance between the patterns of two tasks

# What a study's `primary_metric` may name, and the report's column for it. The excess is the held-out loss less the
# baselines' at the same density, seed by seed: made by the report, and no worker's metric.
EXCESS = "excess"
PRIMARY = {
    EXCESS: EXCESS,
    HELD_OUT_LOSS: "held_out_loss",
    HELD_OUT_TOKEN_ACCURACY: "token_accuracy",
    EVALUATION_LOSS: "evaluation_loss",
    DENSITY: "density",
    TASK_INFORMATION: "task_information",
    TASK_DISTANCE: "task_distance",
    UNION_OF_CHUNK: "union_of_8",
    DEAD_EXPERTS: "dead_experts",
    "active_middle": "active_middle",
    "selectivity": "selectivity",
}

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

HEALTH = (
    ACTIVATION_RATE,
    FRACTION_GOOD,
    ROUTED_NOWHERE,
    NEVER_ACTIVE,
    EFFECTIVE_EXPERTS,
    MUTUAL_INFORMATION,
    RANK_CORRELATION_CONTRIBUTION,
    RANK_CORRELATION_RELEVANCE,
    RANK_CORRELATION_COST,
)
OF_GOODNESS = (
    FRACTION_GOOD,
    RANK_CORRELATION_CONTRIBUTION,
    RANK_CORRELATION_RELEVANCE,
    RANK_CORRELATION_COST,
)


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
