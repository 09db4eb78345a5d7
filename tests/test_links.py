"""Links in our documents: files, folders and headings that are there. Addresses elsewhere are not asked."""

import re
import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\))?)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`|^(?: {4}|\t).*$", re.DOTALL | re.MULTILINE)


@cache
def documents() -> list[Path]:
    """Those that git tracks, or would; without git, those of the folders that have any."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in done.stdout.split("\0") if name]
    paths = [ROOT / name for name in names] or [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/*.md")]
    return sorted(path for path in paths if path.is_file())


def slug(heading: str) -> str:
    """A heading as the end of a link, as GitHub makes it: lower case, punctuation dropped, a hyphen for each space."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    kept = (each for each in text.strip().lower() if each in " -_" or unicodedata.category(each)[0] in "LN")
    return "".join(kept).replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Those of a document's headings; one that comes again has -1, -2 behind it."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?)\s*#*$", text, re.MULTILINE):
        name = slug(heading)
        names.append(f"{name}-{names.count(name)}" if name in names else name)
    return frozenset(names)


def broken(path: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    wrong = []
    for link in _LINK.findall(_CODE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        inside = target == ROOT or ROOT in target.parents
        if not target.exists() or not inside or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_a_link_that_leads_nowhere_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# One, two: `three`\n\n## Again\n\n## Again\n")
    links = ["there.md#one-two-three", "there.md#again-1", "there.md", "#here", "https://example.org/x"]
    wrong = ["absent.md", "there.md#absent", "#absent", "../outside.md", "absent.png"]
    text = (
        "# Here\n`[x](not-a-link)`\n"
        + "".join(f"[a [b]]({link})\n" for link in links + wrong[:4])
        + "![c](absent.png)\n"
    )
    (tmp_path / "page.md").write_text(text)
    (tmp_path.parent / "outside.md").touch()
    assert broken(tmp_path / "page.md") == wrong


class _Loader(yaml.SafeLoader):
    """Takes mkdocs' tags for Python objects as nothing."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def names_in(nav: object) -> list[str]:
    """The documents of a navigation, in its order."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [name for part in parts for name in names_in(part)]  # type: ignore[attr-defined]


def test_the_site_shows_documents_that_are_there_and_fetches_nothing() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)  # noqa: S506 - our own file, and nothing is made of tags
    named = names_in(config["nav"])
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert len(named) == len(set(named)) > 15
    assert config["theme"]["font"] is False
    assert "extra_javascript" not in config
    assert all((ROOT / hook).is_file() for hook in config["hooks"])
