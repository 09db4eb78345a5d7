"""`python -m tests.chains`: how many functions a metric point, a trial and a checkpoint pass through, how large the
rooms of the pipeline are, and how many private names of libraries each file uses.

The chains stand in docs/architecture.md, function by function; an arrow counts as one hop.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
_LINE = re.compile(r" {4}(\S+\.py) +(\S.*)")


@dataclass(frozen=True)
class Hop:
    """A function of a chain. `crosses`: how the value gets here from another thread or process; "" for a plain call."""

    file: Path
    name: str
    crosses: str = ""

    @property
    def last_name(self) -> str:
        """As a call names it."""
        return self.name.rpartition(".")[2]


_BY_NAME = re.compile(r"pipeline(\.\w+)+:\w+")  # a function that is named, not imported


def chains(text: str) -> dict[str, list[Hop]]:
    """The chains of the page, by their titles."""
    section = text.partition("## Three chains\n")[2].partition("\n## ")[0]
    by_title: dict[str, list[Hop]] = {}
    for part in section.split("\n### ")[1:]:
        title, hops, crosses = part.splitlines()[0], [], ""
        for line in part.splitlines()[1:]:
            if line.startswith("    => "):
                crosses = line.removeprefix("    => ")
            elif named := _LINE.fullmatch(line):
                for name in named[2].split(" -> "):
                    hops.append(Hop(ROOT / "pipeline" / named[1], name, crosses))
                    crosses = ""
        if hops:
            by_title[title] = hops
    return by_title


@cache
def functions(file: Path) -> dict[str, ast.AST]:
    """The functions in a file, by their qualified names."""
    definitions: dict[str, ast.AST] = {}

    def enter(node: ast.AST, before: str) -> None:
        for each in ast.iter_child_nodes(node):
            if isinstance(each, ast.FunctionDef):
                definitions[f"{before}{each.name}"] = each
                enter(each, f"{before}{each.name}.<locals>.")
            elif isinstance(each, ast.ClassDef):
                enter(each, f"{before}{each.name}.")
            else:
                enter(each, before)

    enter(ast.parse(file.read_text(encoding="utf-8")), "")
    return definitions


def names_in(node: ast.AST) -> set[str]:
    """Every name and attribute that occurs in a piece of source, those in texts such as "package.module:name" too."""
    names: set[str] = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            names.add(each.id)
        elif isinstance(each, ast.Attribute):
            names.add(each.attr)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str) and _BY_NAME.fullmatch(each.value):
            names.add(each.value.rpartition(":")[2])
    return names


def problems(hops: list[Hop]) -> list[str]:
    """Where a chain and the source differ.

    A function that is called must be named in the one before it, or, where it is handed on as a value, in an earlier
    one of the chain; one that is reached by crossing, there or elsewhere in its own file.
    """
    wrong = []
    for number, hop in enumerate(hops):
        there = functions(hop.file)
        library = number == len(hops) - 1 and hop.name not in there  # the last call may be a library's
        if hop.name not in there and not library:
            wrong.append(f"{hop.file.name} has no {hop.name}")
            continue
        before = [functions(each.file)[each.name] for each in hops[:number] if each.name in functions(each.file)]
        if hop.crosses:
            before.append(ast.parse(hop.file.read_text(encoding="utf-8")))
        if number and not any(hop.last_name in names_in(each) for each in before):
            wrong.append(f"{hop.name} is named in none of the functions before it")
        directly = number and not hop.crosses and hop.last_name in names_in(before[-1])
        if number and not hop.crosses and not directly and not _is_handed_on(before):
            wrong.append(f"{hops[number - 1].name} does not name {hop.name}")
    return wrong


def _is_handed_on(before: list[ast.AST]) -> bool:
    """Whether the last function calls a value that it was given: a parameter, each of several, or one that it looks up
    by name."""
    node = before[-1]
    own = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
    for each in ast.walk(node):
        if isinstance(each, ast.For) and isinstance(each.target, ast.Name):
            own.add(each.target.id)
    called = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    return any(isinstance(each, ast.Call) or (isinstance(each, ast.Name) and each.id in own) for each in called)


def rooms() -> dict[str, list[Path]]:
    """The files of each room of the pipeline, and of what is above the rooms."""
    files: dict[str, list[Path]] = {}
    for file in sorted((ROOT / "pipeline").rglob("*.py")):
        files.setdefault(file.parent.relative_to(ROOT).as_posix(), []).append(file)
    return files


def private_names_by_file() -> dict[str, set[str]]:
    """The private names of libraries that each file of the packages uses; files without any are left out."""
    from tests.test_source import PACKAGES, private_names

    names: dict[str, set[str]] = {}
    for file in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        of_file = {each.partition(": ")[2] for each in private_names(file.read_text(encoding="utf-8"))}
        if of_file:
            names[file.relative_to(ROOT).as_posix()] = of_file
    return names


def main() -> None:
    """Prints the counts."""
    for title, hops in chains(PAGE.read_text(encoding="utf-8")).items():
        crossings = sum(bool(hop.crosses) for hop in hops)
        print(f"{title}: {len(hops) - 1} hops, {crossings} of them to another thread or process")
    for room, files in rooms().items():
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        print(f"{room}: {len(files)} files, {lines} lines")
    for file, names in private_names_by_file().items():
        print(f"{file}: {len(names)} private names of libraries")


if __name__ == "__main__":
    main()
