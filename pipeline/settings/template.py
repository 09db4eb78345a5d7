"""A config to edit: every setting with its default, its limits and what it means, from the settings themselves."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.settings.config import Experiment

_WIDTH = 118
_COMMENTS_AT = 38  # the column of comments beside a value
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS_OF_YAML = ("true", "false", "null")
# The sweep that the file starts with; and, by dotted name, an example of what is written as a comment.
_GIVEN = {"sweep": {"arms": ["per_token", "aggregated", "task_only"], "seeds": [0, 1, 2]}}
EXAMPLES: dict[str, Any] = {
    "data.folder": "path/to/tasks",
    "data.pairs_per_task": 4,
    "model.density": 0.05,
    "training.parts.gate": "mas",
    "training.parts.signal": "goodness",
    "training.parts.cost": "per_token",
    "training.parts.objective": "jsd",
    "training.parts.regulation": "off",
    "training.parts.sharpness": 1.0,
    "training.parts.token_weight": "uniform",
    "training.parts.task_weight": 1.0,
    "training.parts.goodness_weight": 1.0,
    "sweep.grid": {"model.layers": [4, 6]},
    "sweep.arm_settings": {"task_only": {"training.weight_decay": 0.1}},
    "sweep.search": {"samples": 8, "seed": 0, "space": {"training.learning_rate": {"loguniform": [1e-4, 1e-2]}}},
    "sweep.scheduler": {"asha": {"metric": "held_out/loss", "grace_steps": 50, "reduction_factor": 3}},
    "sweep.max_concurrent": 2,
    "study.question": "What do you want to know?",
    "study.intervention": "what differs between the arms",
    "study.primary_metric": "held_out/loss",
    "study.primary_arm": "aggregated",
    "study.primary_cell": {"model.layers": 4},
    "study.expectation": "What do you expect, and by how much?",
    "scales": {"gpu": {"model.hidden": 512, "workers.gpus": 1.0}},
}


def experiment_template(name: str) -> str:
    """The text of a YAML file that holds a valid experiment `name`: all defaults, and a sweep of three arms and seeds.

    Settings without a value of their own are there as comments, with an example.
    """
    schema = Experiment.model_json_schema()
    head = f"""\
        # An experiment. Name and sweep aside, each setting has its default here: keep what you change, and delete the
        # rest. A setting that stands behind "# " is not set, and shows an example.
        #   tiny-onn plan {name}.yaml       what it would run, and how long that would take
        #   tiny-onn ablate {name}.yaml     run it; --resume goes on after an interruption
        """
    lines = [textwrap.dedent(head).rstrip(), f"name: {on_one_line(name)}", 'description: ""']
    for field in Experiment.model_fields:
        if field not in ("name", "description"):
            lines += ["", *_setting(field, field, schema["properties"][field], schema["$defs"], "", False)]
    return "\n".join(lines) + "\n"


def _setting(
    path: str, name: str, about: Mapping[str, Any], groups: Mapping[str, Any], indent: str, silent: bool
) -> Iterator[str]:
    """The lines of one setting, or of a group with all that it holds; `silent` writes comments alone."""
    group = group_of(about, groups)
    if group is None or path in ("sweep.search", "sweep.scheduler"):
        yield from _value(path, name, about, indent, silent)
        return
    silent = silent or all(f"{path}.{each}" in EXAMPLES for each in group["properties"]) or path == "study"
    yield from _comment(group.get("description", "").partition("\n\n")[0].replace("\n", " "), indent)
    yield f"{indent}{'# ' * silent}{name}:"
    for each, inner in group["properties"].items():
        yield from _setting(f"{path}.{each}", each, inner, groups, f"{indent}  ", silent)


def _value(path: str, name: str, about: Mapping[str, Any], indent: str, silent: bool) -> Iterator[str]:
    default = about.get("default")
    group, _, last = path.rpartition(".")
    given = _GIVEN.get(group, {}).get(last)
    if path in EXAMPLES:
        silent, value = True, EXAMPLES[path]
    else:
        value = default if given is None else given
    line = f"{indent}{'# ' * silent}{name}: {on_one_line(value)}"
    meaning = "; ".join(filter(None, (about.get("description", ""), limits_of(about))))
    if not meaning:
        yield line
    elif max(len(line) + 2, _COMMENTS_AT) + len(meaning) + 2 <= _WIDTH:
        yield f"{line:{_COMMENTS_AT - 2}}  # {meaning}"
    else:
        yield from _comment(meaning, indent)
        yield line


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH - len(indent) - 2)]


def group_of(about: Mapping[str, Any], groups: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of the group of settings that a setting is; None for a single value."""
    for each in (about, *about.get("anyOf", ()), *about.get("allOf", ())):
        if "$ref" in each:
            return groups[each["$ref"].rpartition("/")[2]]
    return None


def limits_of(about: Mapping[str, Any]) -> str:
    """What values are allowed, as far as the schema says so."""
    for each in (about, *about.get("anyOf", ())):
        if "enum" in each:
            return "one of " + ", ".join(map(str, each["enum"]))
        if each.get("type") in ("integer", "number"):
            kind = "whole number" if each["type"] == "integer" else "number"
            low, above = each.get("minimum"), each.get("exclusiveMinimum")
            high, below = each.get("maximum"), each.get("exclusiveMaximum")
            ends = (
                f"from {low:g}" if low is not None else f"above {above:g}" if above is not None else "",
                f"to {high}" if high is not None and high < 10**9 else f"below {below:g}" if below is not None else "",
            )
            return " ".join(filter(None, (kind, *ends)))
    return ""


def on_one_line(value: Any) -> str:
    """`value` on one line, as YAML and people write it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{on_one_line(key)}: {on_one_line(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(on_one_line, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value not in _WORDS_OF_YAML:
        return value
    return json.dumps(value)
