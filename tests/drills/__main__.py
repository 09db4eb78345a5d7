"""Runs drills one by one; the exit code is 1 when one fails."""

import sys
import tempfile
import traceback
from pathlib import Path

import click
from rich.console import Console

from tests.drills.registry import DRILLS, Skipped, rehearse, run_drill


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option("--keep", type=click.Path(path_type=Path), help="Leave all that the drills wrote in this folder.")
@click.option("--list", "listing", is_flag=True, help="Only name the drills.")
def main(names: tuple[str, ...], keep: Path | None, listing: bool) -> None:
    """Run the drills called NAMES, or all of them.

    \b
    Examples:
      python -m tests.drills                                  all, one by one: most of an hour
      python -m tests.drills a_worker_is_killed sigterm
      python -m tests.drills --list
    """
    unknown = sorted(set(names) - set(DRILLS))
    if unknown:
        raise click.UsageError(f"no such drill: {', '.join(unknown)}; there are: {', '.join(DRILLS)}")
    if listing:
        for name, drill in DRILLS.items():
            print(f"{name}: {(drill.__doc__ or name).splitlines()[0]}")
        return
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="drills-") as folder:
        place = keep or Path(folder)
        console.print("An undisturbed run first, to compare with ...")
        reference = rehearse(place)
        rows, failed = [], 0
        for number, name in enumerate(names or DRILLS, 1):
            console.print(f"{number} of {len(names or DRILLS)}  {name} ...")
            try:
                seen, seconds = run_drill(name, place, reference)
            except Skipped as reason:
                seen, seconds = f"skipped: {reason}", 0.0
            except Exception as error:
                failed += 1
                at = traceback.extract_tb(error.__traceback__)[-1]
                seen, seconds = f"FAILED: {type(error).__name__} in {at.name}, line {at.lineno}: {error}", 0.0
            console.print(f"    {seconds:.0f} s  {seen}", markup=False)
            rows.append((name, seconds, seen))
    console.print()
    for name, seconds, seen in rows:
        console.print(f"{name:40} {seconds:5.0f} s  {seen.splitlines()[0]}", markup=False)
    whole = sum(seconds for _, seconds, _ in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} drills went as they should, in {whole:.0f} s.")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
