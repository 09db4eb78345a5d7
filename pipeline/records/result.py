"""What a trial's result says, and the reasons of its ends, in the shapes that are written: the folder may be shared."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.files import read_json
from pipeline.foreign_json import DamagedJson, read_bounded
from pipeline.layout import TrialFolder

_MOST_REASON_BYTES = 2**20
_LONGEST_TAG = 5_000  # characters


@dataclass(frozen=True)
class Result:
    """Of `result.json`: the environment by name, and the checkpoints that could not be used, in words."""

    environment: dict[str, str] = field(default_factory=dict)
    checkpoint_problems: tuple[str, ...] = ()


def read_result(folder: TrialFolder) -> Result:
    """What of the trial's result is of the shape that is written; nothing where there is none, or it is damaged."""
    content = read_json(folder.result)
    known = content if isinstance(content, dict) else {}
    environment, problems = known.get("environment"), known.get("checkpoint_problems")
    return Result(
        {
            name: str(value)[:_LONGEST_TAG]
            for name, value in (environment.items() if isinstance(environment, dict) else ())
            if isinstance(value, str | int | float)
        },
        tuple(each for each in (problems if isinstance(problems, list) else ()) if isinstance(each, str)),
    )


def read_reason(path: Path) -> str:
    """Why an attempt or a trial ended, as its file says, up to a megabyte; what is no UTF-8 is replaced."""
    try:
        return read_bounded(path, _MOST_REASON_BYTES).decode("utf-8", "replace")
    except (OSError, DamagedJson) as error:
        return f"the reason cannot be read ({error})"
