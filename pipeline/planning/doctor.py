"""`tiny-onn doctor`: looks over a machine or a cluster before a run, and says what to do about each problem."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pipeline.errors import UserError
from pipeline.escaping import shown


class Verdict(Enum):
    """What a finding means for a run."""

    GOOD = "ok"
    NOTE = "note"  # worth knowing, or slower
    STOPS = "stops a run"


@dataclass(frozen=True)
class Finding:
    """What was found of one thing, and for a note or a problem what to do."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


Check = Callable[[], Iterable[Finding]]

_STYLES = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.STOPS: "bold red"}


def good(name: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(name, Verdict.GOOD, found)


def note(name: str, found: str, fix: str) -> Finding:
    """A run would start; `fix` makes it better."""
    return Finding(name, Verdict.NOTE, found, fix)


def stops(name: str, found: str, fix: str) -> Finding:
    """A run would be refused or fail."""
    return Finding(name, Verdict.STOPS, found, fix)


def refused(name: str, error: UserError) -> Finding:
    """The refusal of a check that a run makes, too: it says itself what to do, in its sentences after the first."""
    found, _, fix = str(error).partition(". ")
    return stops(name, found, fix or "See above.")


def examine(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """The findings of each check in turn. A check that fails in a way nobody foresaw is a finding, too."""
    for name, check in checks:
        try:
            yield from check()
        except UserError as error:
            yield refused(name, error)
        except Exception as error:
            yield note(name, f"could not be checked ({type(error).__name__}: {error})", "Look at it by hand.")


def print_findings(findings: Iterable[Finding], console: Console) -> int:
    """Prints each as it comes, and a line at the end; returns the exit code: 1 where something would stop a run."""
    counts = dict.fromkeys(Verdict, 0)
    for each in findings:
        counts[each.verdict] += 1
        lines = shown(each.found).splitlines() or [""]
        head = Text.assemble((f"{each.verdict.value:<5}", _STYLES[each.verdict]), f" {each.name}: {lines[0]}")
        console.print(head, soft_wrap=True)
        for line in lines[1:]:
            console.print(Text(f"      {line}"), soft_wrap=True)
        if each.fix:
            console.print(Text(f"      Fix: {shown(each.fix)}"), soft_wrap=True)
    worst, notes = counts[Verdict.STOPS], counts[Verdict.NOTE]
    summary = (
        f"{worst} problem{'s' * (worst != 1)} would stop a run" if worst else "Nothing found that would stop a run"
    )
    noted = f"; {notes} note{'s' * (notes != 1)}" if notes else ""
    console.print(Text(f"\n{summary}{noted}.", style="bold red" if worst else "bold green"), soft_wrap=True)
    return 1 if worst else 0


def checks_of(output: Path, address: str | None, tracking_uri: str | None, quick: bool) -> list[tuple[str, Check]]:
    """All checks, the quick ones first.

    Args:
        quick: leave out Ray, which takes about half a minute to start, and the compiler.
    """
    from pipeline.planning import doctor_checks, doctor_services

    machine: list[tuple[str, Check]] = [
        ("Python", doctor_checks.python),
        ("packages", doctor_checks.packages),
        ("cores", doctor_checks.cores),
        ("memory", doctor_checks.memory),
        ("open files", doctor_checks.limits),
        ("output", lambda: doctor_checks.output(output)),
        ("temporary files", doctor_checks.temporary),
        ("ports", doctor_services.ports),
        ("proxies", lambda: doctor_services.proxies(tracking_uri)),
        ("environment", lambda: doctor_services.environment(address is None)),
        ("GPU", doctor_checks.gpu),
    ]
    slow: list[tuple[str, Check]] = [
        ("compiler", doctor_checks.compiler),
        ("private names", doctor_services.private_names),
        ("Ray", lambda: doctor_services.ray_cluster(address, output)),
    ]
    tracker: list[tuple[str, Check]] = [("tracker", lambda: doctor_services.tracker(tracking_uri, output))]
    return machine + tracker + ([] if quick else slow)
