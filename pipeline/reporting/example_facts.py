"""What the data's task measures of the examples that are drawn at the end, and how the report words it."""

import math
from dataclasses import dataclass
from typing import Any

from pipeline.data.contract import BUILT_IN, find_task
from pipeline.reporting.data_facts import parse_data
from pipeline.reporting.results import Results
from pipeline.settings.config import BEFORE


@dataclass(frozen=True)
class Measure:
    """A number, by its name without the split; see `pipeline.data.contract.Measured`."""

    name: str
    title: str
    unit: str
    scale: float
    digits: int

    def show(self, value: float) -> str:
        """The number with its unit and title, as in "12.5 % pairs exactly right"."""
        number = f"{value * self.scale:.{self.digits}f}"
        return " ".join(filter(None, [number, self.unit, self.title]))


@dataclass(frozen=True)
class ExampleWords:
    """What is measured of a task's examples, what their parts are called, and what is said where all of it is 0, and
    where none was drawn."""

    measured: tuple[Measure, ...] = ()
    part: str = "part"
    all_zero: str = ""
    not_drawn: str = ""


def example_words(results: Results) -> ExampleWords:
    """As the first data set of the runs tells; of runs from before data sets told of it, as the built-in task that
    they name has it. Nobody else's code is imported."""
    for each in results.data:
        if isinstance(described := parse_data(*each).get("examples"), dict):
            return _parsed(described)
    trials = (trial for row in results.rows for trial in row.trials.values())
    name = next((trial.params.get("data.task", BEFORE["data.task"]) for trial in trials), "")
    examples = find_task(name).examples if name in BUILT_IN else None
    return _parsed(examples.facts()) if examples else ExampleWords()


def _parsed(described: dict[str, Any]) -> ExampleWords:
    listed = described.get("measured")
    measured = [_measure(each) for each in (listed if isinstance(listed, list) else []) if isinstance(each, dict)]
    part = described.get("part")
    words = [described.get(name) for name in ("all_zero", "not_drawn")]
    return ExampleWords(
        tuple(filter(None, measured)),
        part if isinstance(part, str) and part else ExampleWords.part,
        *(word if isinstance(word, str) else "" for word in words),
    )


def _measure(described: dict[str, Any]) -> Measure | None:
    name, title, unit = (described.get(each) for each in ("name", "title", "unit"))
    scale, digits = described.get("scale"), described.get("digits")
    if not isinstance(name, str) or not isinstance(title, str) or not isinstance(unit, str):
        return None
    if type(digits) is not int or not 0 <= digits < 16:
        return None
    if not isinstance(scale, float | int) or not math.isfinite(scale):
        return None
    return Measure(name, title, unit, float(scale), digits)
