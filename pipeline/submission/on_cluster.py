"""What a submitted job runs first on the cluster, with the standard library and packaging: is what it needs there?

    python -m pipeline.submission.on_cluster [--skip-version-check] ablate submitted/experiment.json [OPTION ...]

Where the command line leaves them out, --output, --storage and --tracking-uri are what the head was started with, or
what came with the job: TINY_ONN_OUTPUT, TINY_ONN_STORAGE and TINY_ONN_TRACKING_URI.
"""

import os
import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.renamed import current_words
from pipeline.running.pins import disagreements, installed, read_pins, requirements

FOLDER = "submitted"
CONFIG, CONSTRAINTS = f"{FOLDER}/experiment.json", f"{FOLDER}/constraints.txt"
SKIP_VERSION_CHECK = "--skip-version-check"
SUBMITTED_AS = "TINY_ONN_SUBMITTED_AS"  # in a job's environment: the command that it was submitted by
OUTPUT, STORAGE, TRACKING_URI = "TINY_ONN_OUTPUT", "TINY_ONN_STORAGE", "TINY_ONN_TRACKING_URI"


def main(arguments: list[str]) -> None:
    """Checks, and then is `tiny-onn` with the arguments that are left; exit code 2 when a check fails."""
    try:
        if current_words(arguments[:1]) == [SKIP_VERSION_CHECK]:
            arguments = arguments[1:]
        else:
            check_versions(Path("pyproject.toml"), Path(CONSTRAINTS))
        arguments = with_cluster_settings(arguments)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    from pipeline.cli import main as tiny_onn

    tiny_onn(arguments)


def check_versions(pyproject: Path, constraints: Path) -> None:
    """Every requirement of the project is installed in its pinned version.

    Raises:
        UserError: names those that are not.
    """
    needed, pins = requirements(pyproject), read_pins(constraints)
    wrong = disagreements({name: pins[name] for name in needed if name in pins}, installed(needed))
    if wrong:
        raise UserError(
            f"this cluster's Python ({sys.executable}) differs from the constraints file: {'; '.join(wrong)}. Install "
            "the pinned versions on its nodes, or submit with --install, or use them as they are: --skip-version-check."
        )


def with_cluster_settings(arguments: list[str]) -> list[str]:
    """`arguments` with the address of this job's cluster, and its own output folder and tracker if none are named.

    Raises:
        UserError: there is no output folder, or it is relative: to a folder that goes with the job.
    """
    completed = list(arguments)
    for option, variable in (("--output", OUTPUT), ("--storage", STORAGE), ("--tracking-uri", TRACKING_URI)):
        if option not in completed and os.environ.get(variable):
            completed += [option, os.environ[variable]]
    if "--output" not in completed and "--storage" in completed:  # then it is the driver's own, and no other node's
        completed += ["--output", str(Path.home() / "tiny-onn-runs")]
    output = completed[completed.index("--output") + 1] if "--output" in completed else None
    if output is None or not Path(output).is_absolute():
        raise UserError(
            f"--output: found {output or 'nothing'}, expected the absolute path of a folder that all nodes see. "
            "Submit with --output or --storage, or start the head with TINY_ONN_OUTPUT or TINY_ONN_STORAGE set."
        )
    return [*completed, "--address", os.environ["RAY_ADDRESS"]]


if __name__ == "__main__":
    main(sys.argv[1:])
