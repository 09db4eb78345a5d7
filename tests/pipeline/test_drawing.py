"""Figures look the same whatever matplotlib is told by the user's environment and files."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from pipeline.drawing import own_style

ROOT = Path(__file__).parents[2]
DRAW = """
import os, sys
from pipeline.drawing import own_style
with own_style():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(2, 1), dpi=50)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [1, 2])
    axes.set_title("5 % of _these_")
    figure.savefig(sys.argv[1])
assert os.environ.get("MPLBACKEND") == (sys.argv[2] or None)
"""


def drawn(folder: Path, backend: str = "", home: Path | None = None, here: Path | None = None) -> bytes:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(home or folder)}
    environment |= {"MPLBACKEND": backend} if backend else {}
    words = [sys.executable, "-c", DRAW, str(folder / "figure.png"), backend]
    subprocess.run(words, env=environment, cwd=here or ROOT, check=True, timeout=120)
    return (folder / "figure.png").read_bytes()


def test_neither_backend_nor_style_of_the_user_counts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    style = "text.usetex: True\naxes.facecolor: black\nfigure.facecolor: black\nfont.size: 30\nbackend: nosuch\n"
    (home / "matplotlibrc").write_text(style)
    plain = drawn(tmp_path)
    assert drawn(tmp_path, "module://matplotlib_inline.not_installed") == plain  # of a Jupyter kernel
    assert drawn(tmp_path, "nosuch") == plain
    assert drawn(tmp_path, "", home) == plain
    assert drawn(tmp_path, "nosuch", home, home) == plain  # the style in the folder where the command is given


def test_the_users_own_style_is_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "black"}):
        with own_style():
            assert not matplotlib.rcParams["text.usetex"]
            assert matplotlib.rcParams["axes.facecolor"] == "white"
        assert matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["axes.facecolor"] == "black"
