"""The pieces that the report's page is put together from. Every text that comes in is escaped here."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from pipeline.reporting.figures import svg

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: #1a1a1a; background: #fff; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { margin: .2rem 0; font-size: 1.7rem; }
h2 { margin: 2.2rem 0 .5rem; font-size: 1.25rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
h3 { margin: 1.2rem 0 .3rem; font-size: 1rem; }
nav { font-size: .9rem; margin: .8rem 0; }
nav a { margin-right: .9rem; white-space: nowrap; }
a { color: #0b57a4; }
.lead { color: #444; }
.note { background: #fdf6e3; border-left: 4px solid #d9a400; padding: .6rem .9rem; margin: .8rem 0; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid #e3e3e3; text-align: right; white-space: nowrap;
  vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; background: #f6f6f6; white-space: normal; min-width: 4.5rem; }
th.text, td.text { text-align: left; white-space: nowrap; }
td:first-child, th:first-child { position: sticky; left: 0; background: #fff; }
th:first-child { background: #f6f6f6; }
td.words { text-align: left; white-space: normal; }
td small { color: #666; display: block; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
figure { margin: .8rem 0; }
figure img { width: 100%; min-width: 44rem; display: block; }
figcaption { color: #555; font-size: .88rem; margin-top: .3rem; }
.task { display: flex; flex-wrap: wrap; gap: .9rem; margin: .3rem 0 1rem; }
.task div { width: 132px; font-size: .8rem; line-height: 1.3; }
.task b { display: block; }
.grid { display: block; margin-top: .2rem; }
.nothing { display: block; width: 128px; height: 64px; border: 1px dashed #999; margin-top: .2rem; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document that loads nothing: its style and pictures are in it, and scripts are forbidden."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str, anchor: str) -> str:
    """A heading of a section, which can be linked to."""
    return f'<h2 id="{escape(anchor)}">{escape(text)}</h2>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is "note" or "lead"."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table that scrolls sideways. Cells are HTML, made by `cell` and its like; the heads are plain text."""
    kinds = ["text"] * text_columns + [""] * (len(head) - text_columns)
    top = "".join(f'<th class="{kind}">{escape(text)}</th>' for kind, text in zip(kinds, head, strict=True))
    lines = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<tr>{top}</tr>\n{lines}</table></div>'


def cell(text: str, small: str = "", bold: bool = False) -> str:
    """The inside of a table's cell, with a smaller line below it."""
    inner = f"<b>{escape(text)}</b>" if bold else escape(text)
    return inner + (f"<small>{escape(small)}</small>" if small else "")


def dotted(text: str, colour: str) -> str:
    """Text behind a dot of a colour."""
    return f'<span class="dot" style="background:{escape(colour)}"></span>{escape(text)}'


def picture(figure: Figure | None, alt: str, caption: str) -> str:
    """A figure as an inlined SVG image with its caption; "" for None."""
    if figure is None:
        return ""
    data = base64.b64encode(svg(figure).encode()).decode()
    return (
        f'<figure><div class="scroll"><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
