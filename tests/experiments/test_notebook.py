"""The notebook is the Python file's, is filed with what it printed and drew, and runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.notebook import NOTEBOOK, SOURCE, cells_of, executed, made
from tests.pipeline.samples import write_config

Cell = dict[str, Any]


def cells(code: bool = False) -> list[Cell]:
    both = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in both if not code or cell["cell_type"] == "code"]


def shown(cell: Cell) -> str:
    """All that a cell printed or drew, but for the bytes of images."""
    parts = []
    for output in cell["outputs"]:
        assert output["output_type"] != "error", output
        data = output.get("data", {})
        parts += ["".join(output.get("text", ""))]
        parts += ["".join(text) for kind, text in data.items() if kind.startswith("text/")]
    return "\n".join(parts)


def images(cell: Cell) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def check_outputs(outputs: list[Cell]) -> None:
    """Of cells that ran: the plan, the live view at its end, tables, two figures, and the report's first finding."""
    code = [cell for cell in outputs if cell["cell_type"] == "code"]
    whole = [shown(cell) for cell in code]
    assert re.search(r"\b3 trials, [123] at once", whole[1])
    assert "first-look: 3 of 3 done" in whole[2]
    assert "<pre" in whole[2]  # the table, drawn anew in its place
    assert len(re.findall("of 3 done", whole[2])) == 1
    assert "middle layer, more active than per_token: task" in whole[3]
    assert [images(cell) for cell in code] == [0, 0, 0, 0, 1, 0, 0, 1]


def test_the_cells_are_those_of_the_python_file() -> None:
    filed = [(cell["cell_type"], "".join(cell["source"])) for cell in cells()]
    assert filed == cells_of(SOURCE.read_text(encoding="utf-8"))
    assert len(filed) > 12


def test_cells_are_distinguished() -> None:
    source = "# %% [markdown]\n# # Title\n#\n#     code\n\n# %%\na = 1\n\nb = 2  # %%\n"
    assert cells_of(source) == [("markdown", "# Title\n\n    code"), ("code", "a = 1\n\nb = 2  # %%")]


def test_it_is_filed_with_its_figures_and_names_no_place_of_the_machine_that_ran_it() -> None:
    check_outputs(cells())
    text = "".join(shown(cell) for cell in cells(code=True))
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)/", text)


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    """On small tasks: what it calls experiments/smoke.yaml is found in the folder that it runs in."""
    (tmp_path / "experiments").mkdir()
    settings = write_config(tmp_path).read_text().replace("layers: 1", "layers: 2")
    (tmp_path / "experiments" / "smoke.yaml").write_text(settings)
    check_outputs(executed(made(SOURCE.read_text(encoding="utf-8")), tmp_path).cells)
