"""How the answer on scaling is told: the table's rows, and the notes without which they mislead."""

from typing import Any

from experiments.benchmarks.cost_model import Network, StepCost
from experiments.benchmarks.report import milliseconds
from experiments.benchmarks.scaling_worker import Traffic

PREDICTED = (8, 16, 64, 256, 1024)
PAIR = 2  # workers that bare all-reduces run between, and whose messages are predicted with


def measured_row(each: dict[str, Any]) -> list[str]:
    """Of the table."""
    mark = " *" if each["more_workers_than_cores"] else ""
    return [
        f"{each['scaling']}{mark}",
        each["variant"],
        str(each["workers"]),
        milliseconds(each["seconds"]),
        f"{each['efficiency']:.2f}",
        str(each["collectives"]),
        f"{each['bytes'] / 2**10:.1f}",
    ]


def predicted_row(each: dict[str, Any], costs: dict[str, StepCost]) -> list[str]:
    """Of the table; two bounds."""
    cost, none, full = costs[each["variant"]], each["no_overlap"], each["full_overlap"]
    sent = Traffic(cost.in_backward, cost.apart)
    return [
        "predicted",
        each["variant"],
        str(each["workers"]),
        f"{milliseconds(full['seconds'])}–{milliseconds(none['seconds'])}",
        f"{none['efficiency']:.2f}–{full['efficiency']:.2f}",
        str(sent.collectives),
        f"{sent.bytes / 2**10:.1f}",
    ]


def scaling_notes(
    measured: list[dict[str, Any]],
    check: dict[str, dict[str, float]],
    costs: dict[str, StepCost],
    here: Network,
    network: Network,
    cores: int,
    compiler_problem: str | None,
) -> list[str]:
    """What must be known to read the table, the model's assumptions among it."""
    notes = []
    if any(each["more_workers_than_cores"] for each in measured):
        notes.append(
            f"* Workers with more threads together than this machine's {cores} cores: these times are those of sharing "
            "cores, not of scaling."
        )
    notes += [
        f"{each['workers']} workers, {each['variant']}: {each['of_floor']:.2f} of the speed of as many independent "
        "processes, which no data-parallel step can exceed; the rest goes to messages and waiting."
        for each in measured
        if each["of_floor"] is not None
    ]
    bytes_ = "; ".join(
        f"{variant} {sum(cost.in_backward)} while the backward pass runs, {sum(cost.apart)} before or after it"
        for variant, cost in costs.items()
    )
    notes.append(
        "Messages and KiB: the all-reduces of a step and what a worker hands to them; over a ring it sends "
        "2 (W - 1) / W times that. In bytes: "
        f"{bytes_}."
    )
    notes.append(
        f"Fitted here, gloo between {PAIR} workers: {here.gigabits:.1f} Gbit/s, {here.latency * 1e6:.0f} us a round."
    )
    notes += [
        f"The model for {PAIR} workers here, {variant}: {milliseconds(each['full_overlap'])} to "
        f"{milliseconds(each['no_overlap'])} ms; measured: {milliseconds(each['measured'])} ms."
        for variant, each in check.items()
    ]
    notes.append(
        f"From {PREDICTED[0]} workers on these are predictions, not measurements: weak scaling, step(W) = compute + "
        f"sum over messages of 2 (W - 1) / W bytes / bandwidth + 2 (W - 1) latency, with {network.gigabits:g} Gbit/s "
        f"each way and {network.latency * 1e6:g} us. They assume one worker's compute as measured here; messages as "
        f"{PAIR} workers send them; a ring for every message, the small ones too, for which a tree would need fewer "
        "rounds; a network that nobody else uses; no stragglers. Each row is two bounds. No overlap: reductions follow "
        "the backward pass. Full overlap: those that leave while it runs cost only what is longer than it. The hooks' "
        "message with P's and G's gradients leaves after it, and nothing hides that."
    )
    if compiler_problem:
        notes.append(f"Elementwise parts of fused and hooks run eagerly: {compiler_problem}.")
    return notes
