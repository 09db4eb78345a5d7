"""matplotlib as it comes, whatever backend and style the user has set for other work."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_style() -> Iterator[None]:
    """Figures that are made in this context look the same everywhere; the user's style is back afterwards.

    MPLBACKEND names a backend that may not be installed, as in a process started by a Jupyter kernel; a matplotlibrc
    may ask for LaTeX or dark colours. Neither is read while matplotlib is imported, nor used.
    """
    _import_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _import_matplotlib() -> None:
    kept = {name: os.environ.get(name) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    spec = importlib.util.find_spec("matplotlib")
    os.environ.pop("MPLBACKEND", None)
    if spec is not None and spec.submodule_search_locations:
        os.environ["MATPLOTLIBRC"] = str(Path(spec.submodule_search_locations[0], "mpl-data", "matplotlibrc"))
    try:
        import matplotlib  # noqa: F401
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
