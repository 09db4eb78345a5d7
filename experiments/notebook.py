"""Makes first_look.ipynb from first_look.py, and runs it: `make notebook`.

The cells are those that `# %%` begins in the Python file, so that there is one text. Needs the extra `notebook`.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCE = Path(__file__).with_name("first_look.py")
NOTEBOOK = SOURCE.with_suffix(".ipynb")
_LIMIT_S = 1800  # a cell
_TEXT = "# %% [markdown]\n"


def cells_of(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell of a Python file with `# %%` marks; kind is markdown or code."""
    cells = []
    for part in ("\n" + source).split("\n# %%")[1:]:
        head, _, text = part.partition("\n")
        if head.strip() == "[markdown]":
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
            cells.append(("markdown", text.strip()))
        else:
            cells.append(("code", text.strip()))
    return cells


def made(source: str) -> "NotebookNode":
    """The notebook, not yet run; the same each time."""
    from nbformat import v4

    notebook: Any = v4.new_notebook()
    for place, (kind, text) in enumerate(cells_of(source)):
        new = v4.new_markdown_cell if kind == "markdown" else v4.new_code_cell
        notebook.cells.append(new(text, id=f"cell-{place}"))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def executed(notebook: "NotebookNode", folder: Path) -> "NotebookNode":
    """Runs the notebook in `folder`; its outputs are in it afterwards.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient

    NotebookClient(
        notebook, timeout=_LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
    return notebook


def main() -> None:
    """Makes and runs it in a folder of its own, and writes it beside the Python file."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(made(SOURCE.read_text(encoding="utf-8")), Path(folder))
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
