"""A place in a notebook's output that is drawn anew, where there is no cursor to move."""

import io
from typing import Any

from rich.console import Console, RenderableType

_WIDTH = 120
_FORMAT = '<pre style="font-family:monospace;line-height:1.2;white-space:pre;overflow-x:auto">{code}</pre>'


class NotebookArea:
    """One output of the cell that runs."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, what: RenderableType) -> None:
        """Puts `what` in the place of what stood there."""
        from IPython.display import HTML, display

        html = HTML(as_html(what))
        if self._handle is None:
            self._handle = display(html, display_id=True)
        else:
            self._handle.update(html)


def as_html(what: RenderableType) -> str:
    """Something that rich can draw, as HTML that needs no style sheet."""
    console = Console(record=True, file=io.StringIO(), width=_WIDTH, force_jupyter=False, force_terminal=True)
    console.print(what)
    return console.export_html(inline_styles=True, code_format=_FORMAT)
