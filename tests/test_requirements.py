"""What pyproject.toml asks for: ranges with both ends, which the pins of constraints.txt satisfy."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipeline.running.pins import read_pins

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PRIVATE_NAMES_ARE_USED = ("mlflow", "ray", "torch")  # so the next minor version is excluded


def asked_for() -> list[tuple[str, Requirement]]:
    """Each requirement with the extra that it is of, "" for none; without those of an extra for another extra."""
    extras = {"": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]
    requirements = [(extra, Requirement(line)) for extra, lines in extras.items() for line in lines]
    return [(extra, each) for extra, each in requirements if each.name != PROJECT["name"]]


def reasons(constraints: str) -> dict[str, set[str]]:
    """Name -> the names after `# via` in its line of constraints.txt: what needs it."""
    lines = re.findall(r"^([\w.-]+)==\S+ +# via (.*)$", constraints, re.MULTILINE)
    return {name: {each.split(" ")[0] for each in via.split(", ")} for name, via in lines}


def mismatches(constraints: str, wanted: set[str]) -> set[str]:
    """What `make constraints` would change: requirements that it has no line for, and lines that nothing needs."""
    needed_by = reasons(constraints)
    listed = set(re.findall(r"^([\w.-]+)==", constraints, re.MULTILINE))
    ours = {name for name, via in needed_by.items() if PROJECT["name"] in via}
    of_others = {name for name, via in needed_by.items() if via & listed or PROJECT["name"] in via}
    return (ours ^ wanted) | (listed - of_others)


def problem(requirement: Requirement, pins: dict[str, str]) -> str | None:
    """Why `requirement` and the pins do not go together; None where they do."""
    operators = {each.operator for each in requirement.specifier}
    if not {">=", "<"} <= operators:
        return f"{requirement}: expected a range with both ends, name>=oldest,<first that is not known to work"
    pin = pins.get(canonicalize_name(requirement.name))
    if pin is None:
        return f"{requirement}: constraints.txt does not pin it"
    if not requirement.specifier.contains(pin):
        return f"{requirement}: constraints.txt pins {pin}"
    end = Version(next(each.version for each in requirement.specifier if each.operator == "<"))
    pinned = Version(pin)
    minor = requirement.name in PRIVATE_NAMES_ARE_USED or pinned.major == 0
    first_unknown = f"{pinned.major}.{pinned.minor + 1}" if minor else f"{pinned.major + 1}"
    if end > Version(first_unknown):
        return f"{requirement}: allows {first_unknown}, which nobody has tried; expected <{first_unknown}"
    return None


def test_the_pins_satisfy_every_range() -> None:
    requirements = asked_for()
    assert {"", "pipeline", "dev", "cluster", "bench"} <= {extra for extra, _ in requirements}
    pins = read_pins(ROOT / "constraints.txt")
    assert [each for _, requirement in requirements if (each := problem(requirement, pins))] == []


@pytest.mark.parametrize(
    ("line", "pin", "said"),
    [
        ("rich>=13", "15.0.0", "both ends"),
        ("rich<16", "15.0.0", "both ends"),
        ("rich>=13,<16", None, "does not pin it"),
        ("rich>=13,<15", "15.0.0", "pins 15.0.0"),
        ("rich>=13,<17", "15.0.0", "allows 16"),
        ("jaxtyping>=0.3,<1", "0.3.11", "allows 0.4"),
        ("ray[tune]>=2.58,<3", "2.60.0", "allows 2.61"),
        ("ray[tune]>=2.58,<2.61", "2.60.0", None),
    ],
)
def test_a_range_that_is_wrong_would_be_found(line: str, pin: str | None, said: str | None) -> None:
    requirement = Requirement(line)
    answer = problem(requirement, {} if pin is None else {requirement.name: pin})
    assert answer is None if said is None else said in (answer or "")


def test_one_package_has_one_range() -> None:
    ranges: dict[str, set[str]] = {}
    for _, requirement in asked_for():
        ranges.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert {name: each for name, each in ranges.items() if len(each) > 1} == {}


def test_the_packages_of_the_pipeline_are_an_extra_that_the_others_include() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {Requirement(each).name for each in PROJECT["dependencies"]} == {"torch", "numpy", "jaxtyping"}
    assert {"ray", "mlflow", "pyarrow"} <= {Requirement(each).name for each in extras["pipeline"]}
    alone = {"pipeline", "docs"}  # needs the source, not the packages
    assert {name for name, lines in extras.items() if "tiny-onn[pipeline]" not in lines} == alone


def test_the_constraints_are_those_of_pyproject() -> None:
    """Each requirement has its line, and no line is left of one that is gone; if not, run `make constraints`."""
    text = (ROOT / "constraints.txt").read_text()
    assert "make constraints" in text.splitlines()[1]
    wanted = {str(canonicalize_name(requirement.name)) for _, requirement in asked_for()}
    assert len(reasons(text)) > 100
    assert mismatches(text, wanted) == set()


def test_constraints_of_another_pyproject_would_be_found() -> None:
    text = "a==1      # via tiny-onn (pyproject.toml)\nb==2  # via a\nc==3  # via gone\nd==4\n"
    assert mismatches(text, {"a", "new"}) == {"new", "c", "d"}
    assert mismatches(text, set()) == {"a", "c", "d"}
