"""Regenerates the numbers and figures of the documents from the results that are filed: `make figures`.

    python -m experiments.figures             writes the documents and figures anew
    python -m experiments.figures --check     says what would change, and exits with 1 if anything would

In a document, what is regenerated is marked by comments, which readers do not see:

    <!-- figures:study arms; held-out loss (nats) -->     a table, made by a function of TABLES, up to the line
    <!-- /figures -->

    A paragraph, or a row of a table, with 0.03 nats in it, at 4 %.
    <!-- numbers: report("per_token", "excess"); _ -->

`numbers` has an expression for each number of the paragraph above it, or of its own line: a function of
`experiments.filed`, or `ratio`, `abs`, `min` or `max` of such; or `_` for one that is no result, such as a setting. A
number keeps as many digits as it has, and its sign where it has one. Words such as `L2` are no numbers, nor is what
is in backquotes.
"""

import ast
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl

from experiments import filed
from experiments.study.summary import figure
from pipeline.reporting.frontier_figure import loss_over_density
from tiny_onn.arms import BASELINES

ROOT = Path(__file__).parents[1]
# Documents in which every decimal number is either marked or said to be no result.
WHOLE = ("README.md", "experiments/RESULTS.md", "docs/costs.md")
_TABLE = re.compile(
    r"(<!-- figures:(?P<name>\S+)(?P<words> [^\n]*?)? -->\n)(?P<text>.*?)(<!-- /figures -->)", re.DOTALL
)
_NUMBERS = re.compile(r"<!-- numbers: (.*?) -->", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.\-/])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w\-]|\.\d)")
_ASIDE = re.compile(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", re.DOTALL)  # in which there are no numbers of ours
_VALUES: dict[str, Callable[..., Any]] = {
    "report": filed.report,
    "study": filed.study,
    "seed_of": filed.seed_of,
    "difference": filed.difference,
    "excess_over": filed.excess_over,
    "bench": filed.bench,
    "ratio": lambda over, under: over / under,
    "abs": abs,
    "max": max,
    "min": min,
}


class Outdated(Exception):
    """A mark that cannot be followed; says where and why."""


def regenerated(text: str, name: str = "") -> str:
    """A document with its tables and numbers as the filed results have them.

    Raises:
        Outdated: a mark names what is not there, or has another number of expressions than its paragraph has numbers.
    """
    text = _TABLE.sub(lambda match: f"{match[1]}{_table(match, name)}\n{match[5]}", text)
    return "".join(_with_numbers(block, name) for block in _blocks(text))


def unmarked(text: str) -> list[str]:
    """Paragraphs with a decimal number that no mark is about."""
    text = re.sub(r"```.*?```", "", _TABLE.sub("", text), flags=re.DOTALL)
    loose = []
    for block in _blocks(text):
        plain = _ASIDE.sub("", block)
        if "<!-- numbers:" not in block and any("." in each for each in _NUMBER.findall(plain)):
            loose.append(block.strip())
    return loose


def images() -> dict[str, Callable[[], mpl.figure.Figure]]:
    """The figures that documents show, by their paths below results, and what draws each."""
    made: dict[str, Callable[[], mpl.figure.Figure]] = {}
    for sweep in _reports():
        place = "" if sweep == "ablation" else f"{sweep}/"
        made[f"{place}loss_over_density.png"] = partial(_frontier, sweep)
    for name in filed.studies():
        made[f"study/{name}.png"] = partial(_study_figure, name)
    return made


def documents() -> list[Path]:
    """Those in which marks are followed."""
    return [ROOT / "README.md", ROOT / "experiments" / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]


def _reports() -> list[str]:
    """The sweeps whose results.csv is filed."""
    others = sorted(path.parent.name for path in filed.RESULTS.glob("*/results.csv"))
    return ["ablation", *others]


def _frontier(sweep: str) -> mpl.figure.Figure:
    made = loss_over_density(filed.trials(sweep))
    assert made is not None
    return made


def _study_figure(name: str) -> mpl.figure.Figure:
    return figure(filed.study_trials(name))


def _ablation(words: list[str]) -> str:
    """Arms, named by `words`, each with what the reader of the README wants to know first."""
    lines = [
        ["arm", "held-out loss (nats)", "active", "excess over the baselines (nats)", "selectivity (nats)", "step"]
    ]
    for arm in words:
        try:
            ends = [filed.report(arm, "excess", end) for end in ("low", "high")]
            excess = f"{filed.report(arm, 'excess'):+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})"
        except TypeError:  # a baseline has no excess over the baselines
            excess = "baseline"
        active = filed.report(arm, "density")
        shown = f"{active:.1f} %" if active < 99.95 else "100 %"
        numbers = [f"{filed.report(arm, 'held_out_loss'):.3f}", shown, excess]
        step = f"{filed.report(arm, 'step_seconds'):.0f} ms"
        lines.append([f"`{arm}`", *numbers, f"{filed.report(arm, 'selectivity'):.2f}", step])
    return filed.markdown(lines)


def _densities(words: list[str]) -> str:
    """A row for each density that a sweep asked for: the held-out losses of its arms, and the excess of those that are
    no baselines. Words: the sweep, the arms, and behind `at` the densities."""
    sweep, *arms = words[: words.index("at")]
    densities = words[words.index("at") + 1 :]
    own = [arm for arm in arms if arm not in BASELINES]
    lines = [["density", *(f"`{arm}` (nats)" for arm in arms), *(f"excess of `{arm}`" for arm in own)]]
    for density in densities:
        of = partial(filed.report, sweep=sweep, density=density)
        losses = [f"{of(arm, 'held_out_loss'):.3f}" for arm in arms]
        excess = [
            f"{of(arm, 'excess'):+.3f} ({of(arm, 'excess', 'low'):+.3f} to {of(arm, 'excess', 'high'):+.3f})"
            for arm in own
        ]
        lines.append([f"{100 * float(density):.0f} %", *losses, *excess])
    return filed.markdown(lines)


def _unlimited(words: list[str]) -> str:
    """A row for each arm: its density, and its excess over the baselines of two sweeps. Words: the arms' sweep, the
    other sweep, and the arms."""
    sweep, over, *arms = words
    lines = [["arm", "held-out loss (nats)", "active (%)", "excess over the baselines (nats)"]]
    for arm in arms:
        of = partial(filed.report, arm, sweep=sweep)
        excess = "baseline"
        if arm not in BASELINES:
            mean, low, high = (filed.excess_over(sweep, arm, stat, over) for stat in ("mean", "low", "high"))
            excess = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
        active = " to ".join(f"{of('density', stat):.1f}" for stat in ("least", "most"))
        lines.append([f"`{arm}`", f"{of('held_out_loss'):.3f}", f"{of('density'):.1f} ({active})", excess])
    return filed.markdown(lines)


def _signals(words: list[str]) -> str:
    """A row for each signal and objective; for each density the held-out loss, least and most seed behind, and what is
    active. Words: the sweep, the signals, and behind `at` the densities."""
    sweep, *signals = words[: words.index("at")]
    densities = words[words.index("at") + 1 :]
    heads = [(f"loss at {100 * float(d):.0f} % (nats)", f"active at {100 * float(d):.0f} %") for d in densities]
    lines = [["signal", "objective", *(each for pair in heads for each in pair)]]
    for signal in signals:
        for objective in ("jsd", "cross_entropy"):
            cells = []
            for density in densities:
                of = partial(
                    filed.report, "per_token", sweep=sweep, density=density, signal=signal, objective=objective
                )
                least, most = of("held_out_loss", "least"), of("held_out_loss", "most")
                cells += [f"{of('held_out_loss'):.3f} ({least:.3f} to {most:.3f})", f"{of('density'):.1f} %"]
            lines.append([f"`{signal}`", f"`{objective}`", *cells])
    return filed.markdown(lines)


def _study(words: list[str]) -> str:
    """A study's table: its name, and the columns, by how their headings begin."""
    return filed.study_table(words[0], words[1:])


_VARIANTS = {
    "plain_compiled": "plain, compiled",
    "plain_eager": "plain, eager",
    "fused": "`fused`, blocks compiled",
    "fused_elementwise": "`fused`, elementwise parts compiled (the default)",
    "fused_observed": "`fused` in a logged step, which also measures routing health",
    "hooks": "`hooks`",
    "two_pass": "two backward passes, graph retained",
    "einsum": "the whole `[tokens, experts, inputs]` gradient by einsum, as the ADR writes it",
}


def _step(words: list[str]) -> str:
    """Time and memory of a step, over the plain compiled one's."""
    lines = [["variant", "time", "peak memory"]]
    for variant, text in _VARIANTS.items():
        lines.append([text, *(f"{filed.bench('step', variant, column):.2f}" for column in ("x", "x2"))])
    return filed.markdown(lines)


TABLES: dict[str, Callable[[list[str]], str]] = {
    "ablation": _ablation,
    "densities": _densities,
    "unlimited": _unlimited,
    "signals": _signals,
    "study": _study,
    "step": _step,
}


def _table(match: re.Match[str], name: str) -> str:
    words = [each.strip() for each in (match["words"] or "").split(";") if each.strip()]
    try:
        return TABLES[match["name"]](words)
    except (KeyError, OSError) as error:
        raise Outdated(f"{name}: figures:{match['name']} {'; '.join(words)}: {error}") from error


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs with what lies between them; each row of a table, and each item of a list, is one of its own."""
    for block in re.split(r"(\n\s*\n)", text):
        if block.lstrip().startswith("|"):
            yield from re.split(r"(?<=\n)", block)
        else:
            yield from re.split(r"(?<=\n)(?=- )", block)


def _with_numbers(block: str, name: str) -> str:
    marks = _NUMBERS.findall(block)
    if not marks:
        return block
    expressions = [each.strip() for mark in marks for each in _split(mark)]
    covered = [number.span() for number in _ASIDE.finditer(block)]
    places = [
        number for number in _NUMBER.finditer(block) if not any(start <= number.start() < end for start, end in covered)
    ]
    if len(places) != len(expressions):
        shown = [number[0] for number in places]
        raise Outdated(
            f"{name}: {len(places)} numbers, {', '.join(shown)}, but {len(expressions)} expressions for them, in:\n"
            f"{block}"
        )
    made, last = [], 0
    for number, expression in zip(places, expressions, strict=True):
        made += [block[last : number.start()], number[0] if expression == "_" else _like(number[0], expression, name)]
        last = number.end()
    return "".join([*made, block[last:]])


def _split(mark: str) -> list[str]:
    """Expressions, between semicolons; `_*3` stands for three of `_`."""
    expressions: list[str] = []
    for each in mark.split(";"):
        many = re.fullmatch(r"\s*_\*(\d+)\s*", each)
        expressions += ["_"] * int(many[1]) if many else [each]
    return expressions


def _value(node: ast.expr) -> Any:
    """The value of a constant, or of a call of a function of _VALUES with such arguments.

    Raises:
        ValueError: the expression has something else in it.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _VALUES:
        named = {each.arg: _value(each.value) for each in node.keywords if each.arg}
        return _VALUES[node.func.id](*map(_value, node.args), **named)
    raise ValueError(f"expected a call of one of {', '.join(_VALUES)}, with constants or such calls")


def _like(number: str, expression: str, name: str) -> str:
    """The value of an expression with the digits of `number`, and its plus sign where it has one."""
    try:
        value = _value(ast.parse(expression, mode="eval").body)
    except Exception as error:
        raise Outdated(f"{name}: numbers: {expression}: {type(error).__name__}: {error}") from error
    digits = len(number.partition(".")[2])
    sign = "+" if number.startswith("+") else ""
    return f"{value:{sign}{',' if ',' in number else ''}.{digits}f}"


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a document would change.")
def main(check: bool) -> None:
    changed = []
    for path in documents():
        before = path.read_text(encoding="utf-8")
        try:
            after = regenerated(before, path.name)
        except Outdated as error:
            raise click.ClickException(str(error)) from None
        if after != before:
            changed.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after, encoding="utf-8")
    if not check:
        for place, draw in images().items():
            draw().savefig(filed.RESULTS / place, dpi=110 if place.startswith("study/") else 150)
    for each in changed:
        click.echo(f"{'would change' if check else 'changed'}: {each}")
    if check and changed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
