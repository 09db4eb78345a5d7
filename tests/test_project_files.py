"""The files for contributors name what is there, and agree with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENTS = ("CONTRIBUTING.md", "CHANGELOG.md")
CODE = re.compile(r"`([^`\n]+)`|^    (.*)$", re.MULTILINE)  # in backquotes, or a line set in
FOLDERS = ("tiny_onn", "pipeline", "experiments", "tests", "docs")


def load(name: str) -> dict[str, object]:
    fields = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert isinstance(fields, dict)
    return fields


def missing_targets(text: str, makefile: str) -> set[str]:
    """Commands `make NAME` in a text that the Makefile has no rule for."""
    return set(re.findall(r"\bmake ([a-z-]+)\b", text)) - set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def missing_paths(text: str) -> set[str]:
    """Links to files, and paths in backquotes below our folders, that are not there."""
    links = {each for each in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in each}
    quoted = {each for each in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if each.partition("/")[0] in FOLDERS}
    return {each for each in links | quoted if not (ROOT / each).exists()}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    commands = "\n".join(f"{quoted}{line}" for quoted, line in CODE.findall(text))
    assert missing_targets(commands, (ROOT / "Makefile").read_text()) == set()
    assert missing_paths(text) == set()


def test_what_is_not_there_would_be_found() -> None:
    assert missing_targets("make test, make tset", "test: lint\n") == {"tset"}
    assert missing_paths("[a](docs/absent.md) `tests/absent.py` `docs/arms.md` `a/b`") == {
        "docs/absent.md",
        "tests/absent.py",
    }


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = load("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert [each["name"] for each in citation["authors"]] == [each["name"] for each in PROJECT["authors"]]  # type: ignore[attr-defined]
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert PROJECT["version"] in headings[0]


def test_the_workflow_runs_what_we_run_on_every_python_that_is_named() -> None:
    jobs = load(".github/workflows/ci.yml")["jobs"]
    job = jobs["test"]  # type: ignore[index]
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert job["strategy"]["matrix"]["python"] == named
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_hooks_are_the_steps_of_make_lint() -> None:
    hooks = load(".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"].split()[0] for each in hooks for hook in each["hooks"]]  # type: ignore[attr-defined]
    rule = (ROOT / "Makefile").read_text().partition("\nlint: ")[2].partition("\n\n")[0]
    assert entries == [f".venv/bin/{each}" for each in re.findall(r"\$\(BIN\)/(\S+)", rule)]


def test_the_issue_forms_can_be_read() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for form in forms:
        fields = load(form.relative_to(ROOT).as_posix())
        assert form.name == "config.yml" or {"name", "description", "body"} <= set(fields)
