"""What a submitted job runs first on the cluster, with the standard library alone: is what it needs there?

    python -m pipeline.on_cluster [--any-versions] ablate submitted/experiment.json [OPTION ...]

Where the command line leaves them out, --output and --tracking-uri are what the cluster's nodes were started with:
TINY_ONN_OUTPUT and TINY_ONN_TRACKING_URI.
"""

import os
import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.pins import disagreements, installed, read_pins, requirements

FOLDER = "submitted"
CONFIG, CONSTRAINTS = f"{FOLDER}/experiment.json", f"{FOLDER}/constraints.txt"
ANY_VERSIONS = "--any-versions"
SUBMITTED_AS = "TINY_ONN_SUBMITTED_AS"  # in a job's environment: the command that it was submitted by
OUTPUT, TRACKING_URI = "TINY_ONN_OUTPUT", "TINY_ONN_TRACKING_URI"


def main(arguments: list[str]) -> None:
    """Checks, and then is `tiny-onn` with the arguments that are left; exit code 2 when a check fails."""
    try:
        if arguments[:1] == [ANY_VERSIONS]:
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
            "the pinned versions on its nodes, submit with --install, or take them as they are with --any-versions."
        )


def with_cluster_settings(arguments: list[str]) -> list[str]:
    """`arguments` with the address of this job's cluster, and its own output folder and tracker if none are named.

    Raises:
        UserError: there is no output folder, or it is relative: to a folder that goes with the job.
    """
    completed = list(arguments)
    for option, variable in (("--output", OUTPUT), ("--tracking-uri", TRACKING_URI)):
        if option not in completed and os.environ.get(variable):
            completed += [option, os.environ[variable]]
    output = completed[completed.index("--output") + 1] if "--output" in completed else None
    if output is None or not ("://" in output or Path(output).is_absolute()):
        raise UserError(
            f"--output: found {output or 'nothing'}, expected the absolute path of a folder that all nodes see. "
            "Submit with --output, or start the head with TINY_ONN_OUTPUT set."
        )
    return [*completed, "--address", os.environ["RAY_ADDRESS"]]


if __name__ == "__main__":
    main(sys.argv[1:])
