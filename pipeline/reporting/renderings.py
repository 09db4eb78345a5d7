"""A table as Markdown, LaTeX, or for a terminal."""

import re

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from pipeline.reporting.tables import Cell, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "∞": r"$\infty$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_LEAST_NUMBERS = 3  # columns of numbers that are shown however narrow the terminal is
_WIDEST_NAME = 28


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no tags, no table cells, no links, no code, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*\[\]])", r"\\\1", text)


def markdown_table(table: Table) -> str:
    """The table, the best numbers bold, small print behind the number."""
    lines = [[*map(escape, table.head)], ["---"] * len(table.head)]
    for row in table.rows:
        lines.append([_markdown(cell) for cell in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex_table(table: Table, caption: str, label: str) -> str:
    """A `table` for the package booktabs: \\input it. The best numbers are bold; of the small print, the interval."""
    lines = [" & ".join(map(_latex, table.head))]
    for row in table.rows:
        lines.append(" & ".join(rf"\textbf{{{_latex(cell.text)}}}" if cell.best else _in_latex(cell) for cell in row))
    kinds = "l" * table.names + "r" * (len(table.head) - table.names)
    body = " \\\\\n".join(lines[1:])
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_latex(caption)}}}\n\\label{{{re.sub(r'[^A-Za-z0-9:._-]', '-', label)}}}\n"
        f"\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{lines[0]} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def terminal_table(table: Table, width: int) -> tuple[RichTable, int]:
    """The table for a terminal of so many letters, and how many of its columns there was no room for."""
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    widths = [
        max(min(len(name), _longest_word(name)), *(len(_terminal(row[n])) for row in table.rows), 1)
        for n, name in enumerate(table.head)
    ]
    widths[: table.names] = [min(each, _WIDEST_NAME) for each in widths[: table.names]]
    shown, used = 0, 0
    for place, each in enumerate(widths):
        used += each + 3
        if used > width and place >= table.names + _LEAST_NUMBERS:
            break
        shown = place + 1
    for place, name in enumerate(table.head[:shown]):
        if place < table.names:  # a long name is folded, as a row without its name says nothing
            rich.add_column(Text(name), overflow="fold", min_width=widths[place], max_width=_WIDEST_NAME)
        else:
            rich.add_column(Text(name), justify="right", min_width=min(widths[place], 16))
    for row in table.rows:
        rich.add_row(*(Text(_terminal(cell)) for cell in row[:shown]))
    return rich, len(table.head) - shown


def _markdown(cell: Cell) -> str:
    text = escape(cell.text)
    small = f" {escape('; '.join(cell.small))}" if cell.small else ""
    return f"**{text}**{small}" if cell.best else text + small


def _terminal(cell: Cell) -> str:
    interval = next((small for small in cell.small if small.startswith("[")), "")
    text = f"* {cell.text}" if cell.best else cell.text
    return f"{text} {interval}".rstrip()


def _in_latex(cell: Cell) -> str:
    interval = next((small for small in cell.small if small.startswith("[")), "")
    return f"{_latex(cell.text)} {_latex(interval)}".rstrip()


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=1)
