"""For mkdocs: lays the documents out in build/docs as in the tree, and lists those that `nav` does not name."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_KINDS = ("*.md", "*.png", "*.html", "*.yaml", "*.yml", "*.ipynb", "*.py", "*.toml", "*.cff", "LICENSE", "*Dockerfile")
_TITLE = re.compile(r"\A# (.+)$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Copies what git tracks, or would, of the kinds that documents link to; adds what `nav` leaves out."""
    target = Path(config["docs_dir"])
    shutil.rmtree(target, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *_KINDS]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith("."):
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place)
    more = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in str(config["nav"])]
    if more:
        config["nav"].append({"More": [{title(ROOT / name): name} for name in more]})
    return config


def title(path: Path) -> str:
    """A document's first heading."""
    found = _TITLE.search(path.read_text(encoding="utf-8"))
    return found.group(1) if found else path.stem
