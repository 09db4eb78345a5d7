"""Every setting with its default, unit, meaning and an example: what `tiny-onn settings` and docs/settings.md show."""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.settings.config import Experiment
from pipeline.settings.near_names import known_elsewhere
from pipeline.settings.template import EXAMPLES, group_of, limits_of, on_one_line

_UNITS = {
    "data.max_tokens": "tokens a task",
    "data.held_out": "part of the tasks",
    "data.dihedral_views": "views a task",
    "data.colour_permutations": "colourings a view",
    "data.pairs_per_task": "pairs",
    "data.rows_per_group": "rows",
    "data.rows_per_shard": "rows",
    "model.hidden": "units",
    "model.layers": "blocks",
    "model.heads": "heads",
    "model.density": "part of the experts",
    "training.steps": "steps",
    "training.batch_tokens": "tokens a step",
    "training.micro_batches": "parts of a step",
    "training.warmup_steps": "steps",
    "training.clip_norm": "L2 norm",
    "training.log_every": "steps",
    "training.evaluate_every": "steps",
    "training.checkpoint_every": "steps",
    "training.keep_checkpoints": "checkpoints",
    "training.check_replicas_every": "steps",
    "training.prototype_snapshots": "snapshots a run",
    "training.decode_tasks": "tasks",
    "training.vote_views": "views a task",
    "workers.count": "processes a trial",
    "workers.cpus": "CPUs a worker",
    "workers.gpus": "GPUs a worker",
    "workers.timeout_s": "seconds",
    "workers.max_failures": "times a trial",
    "sweep.max_concurrent": "trials",
    "sweep.search.samples": "samples",
    "sweep.scheduler.asha.grace_steps": "steps",
}
# What the template of a config has no example for.
_OTHERS: dict[str, Any] = {
    "name": "my-study",
    "description": "Does a wider model route better?",
    "data.task": "text",
    "data.order": "sequential",
    "data.options": {"letters": 5},
    "data.dataset": "arc-agi-1",
    "data.max_tokens": 1024,
    "data.held_out": 0.1,
    "data.held_out_for": "selection",
    "data.dihedral_views": 1,
    "data.colour_permutations": 4,
    "data.seed": 1,
    "data.rows_per_group": 32,
    "data.rows_per_shard": 1024,
    "model.hidden": 128,
    "model.layers": 8,
    "model.heads": 4,
    "model.gain": 2.0,
    "model.gate_parameter": "uniform",
    "model.build": "my_model:build",
    "model.options": {"kernel": 3},
    "training.arm": "top_k",
    "training.seed": 7,
    "training.steps": 600,
    "training.batch_tokens": 3072,
    "training.schedule": "cosine",
    "training.micro_batches": 4,
    "training.optimizer": "sgd",
    "training.learning_rate": 1e-3,
    "training.router_learning_rate": 1e-2,
    "training.weight_decay": 0.1,
    "training.warmup_steps": 60,
    "training.clip_norm": 0.5,
    "training.on_nonfinite": "skip",
    "training.precision": "bfloat16",
    "training.engine": "hooks",
    "training.compile": "eager",
    "training.log_every": 1,
    "training.evaluate_every": 50,
    "training.checkpoint_every": 50,
    "training.keep_checkpoints": 5,
    "training.check_replicas_every": 0,
    "training.prototype_snapshots": 0,
    "training.decode_tasks": 0,
    "training.vote_views": 1,
    "training.score_evaluation": "never",
    "training.observer": "my_observers:watch",
    "training.routing_maps": 0,
    "workers.count": 2,
    "workers.cpus": 0.5,
    "workers.gpus": 1.0,
    "workers.timeout_s": 600,
    "workers.max_failures": 3,
    "sweep.arms": ["per_token", "top_k"],
    "sweep.seeds": [0, 1, 2, 3, 4],
    "sweep.search.samples": 16,
    "sweep.search.seed": 1,
    "sweep.search.space": {"training.learning_rate": {"loguniform": [1e-4, 1e-2]}},
    "sweep.scheduler.asha.metric": "held_out/token_accuracy",
    "sweep.scheduler.asha.grace_steps": 50,
    "sweep.scheduler.asha.reduction_factor": 2.0,
    "sweep.scheduler.asha.across_arms": True,
    "study.reference": "task_only",
}
_COLUMNS = ("setting", "default", "unit", "meaning", "example")


@dataclass(frozen=True)
class Setting:
    """One setting, as text. `default` is "" where it has to be given, or where its group is absent by default."""

    name: str
    default: str
    unit: str
    meaning: str
    example: str

    @property
    def change(self) -> str:
        """The example as the command line takes it."""
        return f"--set {shlex.quote(f'{self.name}={self.example}')}"


def every_setting() -> list[Setting]:
    """All settings but groups, in the order of the config; first those that are in no group."""
    schema = Experiment.model_json_schema()
    settings = list(_below("", schema, schema["$defs"]))
    return sorted(settings, key=lambda each: "." in each.name)


def find_settings(word: str, among: Sequence[Setting]) -> tuple[list[Setting], str | None]:
    """Those that a word is about: in their names, else in what they mean; and what there is in its place, where other
    tools have a setting of that name and this one has not."""
    elsewhere, small = known_elsewhere(word), word.lower().replace("-", "_")
    meant = [each for each in among if elsewhere and each.name in elsewhere.replace(",", " ").replace(";", " ").split()]
    named = [each for each in among if small in each.name.lower()]
    matching = [each for each in among if word.lower() in f"{each.meaning} {each.unit}".lower()]
    return list(dict.fromkeys([*meant, *(named or ([] if meant else matching))])), elsewhere


def as_markdown(settings: Collection[Setting]) -> str:
    """docs/settings.md."""
    head = [
        "# Settings",
        "",
        "Every setting of a config, by its dotted name. Written by `make settings`; do not edit it by hand.",
        "",
        "    tiny-onn settings              all of them, in the terminal",
        "    tiny-onn settings learning     those that a word is about; `lr`, `epochs` and `batch_size` are known, too",
        "    tiny-onn init my-study.yaml    a config with all of them, to edit",
        "",
        "In a config a name's parts are nested (`training:` and below it `steps: 600`); on the command line it is one",
        "word, as in the examples. A setting that a config does not name has its default; `–` is: none.",
    ]
    lines, group = head, None
    for each in settings:
        top = each.name.partition(".")[0] if "." in each.name else ""
        if top != group:
            group = top
            lines += ["", f"## `{top}`" if top else "## The experiment", ""]
            lines += [f"| {' | '.join(_COLUMNS)} |", "|" + " --- |" * len(_COLUMNS)]
        cells = (f"`{each.name}`", _code(each.default), each.unit, each.meaning, f"`{each.change}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _code(default: str) -> str:
    return default if default in ("", "–") else f"`{default}`"


def _below(prefix: str, about: Mapping[str, Any], groups: Mapping[str, Any]) -> Iterator[Setting]:
    required = about.get("required", ())
    for name, inner in about["properties"].items():
        path = f"{prefix}{name}"
        group = group_of(inner, groups)
        if group is not None:
            yield from _below(f"{path}.", group, groups)
            continue
        default = inner.get("default")
        meaning = "; ".join(filter(None, (inner.get("description", ""), limits_of(inner))))
        example = _OTHERS.get(path, EXAMPLES.get(path, default))
        shown = "" if name in required else "–" if default is None else on_one_line(default)
        yield Setting(path, shown, _UNITS.get(path, ""), meaning, on_one_line(example))
