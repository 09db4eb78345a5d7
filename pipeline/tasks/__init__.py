"""Tasks: what is learnt. `Task` and its parts are what a task of one's own is made of; see docs/tasks.md."""

from pipeline.data.contract import Encoded, Examples, Measured, ModelSettings, Rows, Score, Source, Splits, Task
from pipeline.data.model_use import Answers, Layout, RoutingMaps, in_lines
from pipeline.data.sequence import IGNORED, WHOLE, Format, Sequence

__all__ = [
    "IGNORED",
    "WHOLE",
    "Answers",
    "Encoded",
    "Examples",
    "Format",
    "Layout",
    "Measured",
    "ModelSettings",
    "RoutingMaps",
    "Rows",
    "Score",
    "Sequence",
    "Source",
    "Splits",
    "Task",
    "in_lines",
]
