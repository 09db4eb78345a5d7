"""The console script `tiny-onn`: `pipeline.cli`, or a line that says what to install for it."""

import sys

from pipeline.extra import missing_packages, refusal


def main() -> None:
    """Runs the command line; exit code 2 where the extra `pipeline` is not installed."""
    if missing := missing_packages():
        sys.exit(_refuse(refusal("The command tiny-onn", missing)))
    from pipeline.cli import main as tiny_onn

    tiny_onn()


def _refuse(text: str) -> int:
    print(f"Error: {text}", file=sys.stderr)
    return 2
