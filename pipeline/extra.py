"""Whether the packages that the pipeline needs are installed: the extra `pipeline` of the distribution.

`pip install tiny-onn` installs what `import tiny_onn` needs, torch; Ray, MLflow and the rest come with the extra.
This module needs the standard library alone.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, version

_DISTRIBUTION, _EXTRA = "tiny-onn", "pipeline"
_MARKER = re.compile(rf"extra *== *['\"]{_EXTRA}['\"]")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def requirements_here() -> list[str]:
    """What the installed package requires, its extra `pipeline` included, as `name>=1`; none where the package itself
    is not installed, as in a job's folder on a cluster."""
    try:
        listed = distribution(_DISTRIBUTION).requires or []
    except PackageNotFoundError:
        return []
    pairs = [each.partition(";") for each in listed]
    return [name.strip() for name, _, marker in pairs if not marker or _MARKER.search(marker)]


def missing_packages() -> list[str]:
    """The distributions among `requirements_here` that are not installed."""
    names = [match.group() for each in requirements_here() if (match := _NAME.match(each))]
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
