"""Whether the packages that the pipeline needs are installed: the extra `pipeline` of the distribution.

`pip install tiny-onn` installs what `import tiny_onn` needs, torch; Ray, MLflow and the rest come with the extra.
This module needs the standard library alone.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, version

_DISTRIBUTION, _EXTRA = "tiny-onn", "pipeline"
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def missing_packages() -> list[str]:
    """The distributions of the extra that are not installed here; none where this package itself is not installed, as
    in a job's folder on a cluster."""
    try:
        listed = distribution(_DISTRIBUTION).requires or []
    except PackageNotFoundError:
        return []
    marked = re.compile(rf"extra *== *['\"]{_EXTRA}['\"]")
    names = [found.group() for each in listed if marked.search(each) and (found := _NAME.match(each))]
    return [name for name in names if not _is_installed(name)]


def require_pipeline(what: str) -> None:
    """Raises ImportError, with the command to give, where the extra is not installed; `what` needs it."""
    if missing := missing_packages():
        raise ImportError(refusal(what, missing))


def refusal(what: str, missing: list[str]) -> str:
    """What to say: what happened, and what to do."""
    shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    return (
        f"{what} needs packages that are not installed here: {shown}. `import tiny_onn` works without them. "
        f"Install them: {sys.executable} -m pip install '{_DISTRIBUTION}[{_EXTRA}]'"
    )


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
