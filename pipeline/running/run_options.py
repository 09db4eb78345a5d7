"""How an experiment's trials are run: what a command is given beside the settings, as one value."""

from dataclasses import dataclass, field

from rich.console import Console

from pipeline.layout import Output
from pipeline.records.phases import Clock
from pipeline.tracking.destination import Destination


@dataclass(frozen=True)
class RunOptions:
    """Handed on whole, from the command to the sweep.

    Args:
        output: the folder for everything that is written.
        command: the command line that does the same, without --resume; it is shown as the way to go on.
        resume: whether a sweep that has been started before may go on.
        address: host:port of a Ray cluster; None: this machine alone.
        destination: the tracker's store, and the experiment in it.
        allow_offline_tracking: start even if the tracker does not answer.
        accept_changed_code: go on though the user's own code is another than when the sweep was last run.
        storage: where data, checkpoints and the sweep's state lie that all machines reach, as a path or URI; None: in
            `output`.
        verbose: whether Ray logs to the terminal.
        clock: where the command's time goes; it runs since the command was given.
    """

    output: Output
    command: str
    resume: bool = False
    address: str | None = None
    destination: Destination = field(default_factory=Destination)
    allow_offline_tracking: bool = False
    accept_changed_code: bool = False
    storage: str | None = None
    verbose: bool = False
    console: Console = field(default_factory=Console)
    clock: Clock = field(default_factory=lambda: Clock("command"))
