"""How a sweep ended, as a value and in words."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from pipeline.escaping import shown
from pipeline.records.result import read_reason, read_result
from pipeline.records.state import State
from pipeline.running.progress import TrialProgress
from pipeline.running.provenance import with_other_code

_NAMED = 3
_SIGNALS = {int(signal.SIGINT): "Ctrl-C", int(signal.SIGHUP): "SIGHUP: its terminal was closed"}


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended. `failures` says why, by trial; `signal` is what interrupted it; `taken_by` says why it is not
    this command's any longer, as the end of a sentence about the sweep.

    `undelivered`: MLflow lacks something, and a run may have been left RUNNING there.
    """

    finished: int
    total: int
    failures: dict[str, str] = field(default_factory=dict)
    signal: int | None = None
    pruned: int = 0
    taken_by: str | None = None
    undelivered: bool = False

    @property
    def failed(self) -> int:
        """How many trials failed."""
        return len(self.failures)

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """0, or 1 when a trial neither finished nor was pruned or MLflow lacks something; or after a signal 128 and its
        number: 130 after Ctrl-C, 143 after SIGTERM, 129 when the terminal was closed."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.unended or self.undelivered else 0

    @property
    def unended(self) -> int:
        """How many trials neither finished nor were pruned."""
        return self.total - self.finished - self.pruned


def outcome_of(progress: Sequence[TrialProgress], stopped_by: int | None, taken_by: str | None = None) -> SweepOutcome:
    """What the trials' states, now settled, come to."""
    failures = {p.trial.key: read_reason(p.folder.failure) for p in progress if p.state is State.FAILED}
    count = {state: sum(p.state is state for p in progress) for state in State}
    return SweepOutcome(count[State.FINISHED], len(progress), failures, stopped_by, count[State.PRUNED], taken_by)


def print_start(name: str, progress: Sequence[TrialProgress], left: Sequence[TrialProgress], console: Console) -> None:
    """How much there is to do, and what was begun with other code than this."""
    done = len(progress) - len(left)
    print_line(
        console,
        f"{name}: {len(left)} trial{'s' * (len(left) != 1)} to run" + (f", {done} ended before" if done else ""),
    )
    other = [p.trial.key for p in progress if with_other_code(p.folder)]
    if other:
        more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
        text = f"The code has changed since {', '.join(other[:_NAMED])}{more} last ran"
        print_line(console, f"{text}; attempts.jsonl in each trial's folder says what ran with which.", "yellow")


def print_end(
    outcome: SweepOutcome,
    problems: Sequence[str],
    progress: Sequence[TrialProgress],
    ran: Sequence[TrialProgress],
    console: Console,
    command: str,
    sync: str,
) -> None:
    """What failed, what was survived and what was not delivered; `command` goes on, `sync` delivers."""
    if outcome.taken_by:
        print_line(console, f"The sweep {outcome.taken_by}", "bold red")
        return
    for trial in ran:
        for survived in trial.folder.survived_files():
            print_line(
                console, f"{trial.trial.key} was taken up again after: {_first_line(read_reason(survived))}", "yellow"
            )
        for bad in read_result(trial.folder).checkpoint_problems:
            print_line(console, f"{trial.trial.key} went on from an older checkpoint: {bad}", "yellow")
    folders = {p.trial.key: p.folder for p in progress}
    for key, reason in outcome.failures.items():
        print_line(console, f"{key} failed: {_first_line(reason)}\n  all of it in {folders[key].failure}", "red")
    if outcome.pruned:
        print_line(console, f"{outcome.pruned} of {outcome.total} trials were pruned; they are in no comparison.")
    if outcome.failed:
        print_line(console, f"{outcome.failed} of {outcome.total} trials failed.", "bold red")
    if problems:
        print_line(
            console, "\n".join(["Not all of it is tracked:", *(f"  {problem}" for problem in problems)]), "yellow"
        )
    if outcome.signal is not None:
        name = _SIGNALS.get(outcome.signal) or signal.Signals(outcome.signal).name
        print_line(console, f"Stopped by {name}: {outcome.finished} of {outcome.total} trials are finished.")
    if problems:
        print_line(console, f"What is left waits on disk. When the tracker is back, deliver it with:\n  {sync}")
    if outcome.signal is not None or outcome.unended:
        print_line(console, f"Go on with:\n  {command} --resume")


def print_line(console: Console, text: str, style: str = "") -> None:
    """Prints text as it is: no markup, no colours of its own, no breaks."""
    console.print(shown(text), style=style, highlight=False, markup=False, soft_wrap=True)


def _first_line(reason: str) -> str:
    return next(iter(reason.splitlines()), "nothing said")
