"""A command whose output goes away goes on; one whose terminal is closed ends in order."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.interrupts import Interrupts
from pipeline.running.live import LiveView
from pipeline.running.outcome import SweepOutcome, print_end
from pipeline.terminal import LastingStream

ROOT = Path(__file__).parents[2]
PRINTS = """
import sys
from rich.console import Console
from pipeline.running.redirect_output import redirect_output
from pipeline.terminal import lasting_output
from pathlib import Path
with lasting_output():
    console = Console()
    for n in range(3000):
        console.print(n, "x" * 50)
    print("plain")
    with redirect_output(Path(sys.argv[1]) / "chatter", console):
        for n in range(3000):
            console.print(n, "y" * 50)
    console.print("end")
Path(sys.argv[1], "done").touch()
"""


def prints(folder: Path, stdout: int, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRINTS, str(folder)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
        timeout=60,
    )


def test_a_reader_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = prints(tmp_path, writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").exists()


def test_a_terminal_that_was_closed_ends_nothing_by_its_output(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    os.close(ours)  # every write to the other end is an input/output error now
    done = prints(tmp_path, theirs)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_a_log_ends_nothing(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = prints(tmp_path, full)
    os.close(full)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_encoding_lacks_is_replaced() -> None:
    raw = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    Console(file=stream, width=40).print("arm · seed … 5 %")  # type: ignore[arg-type]
    assert raw.getvalue() == b"arm ? seed ? 5 %\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_closed_terminal_is_a_signal_like_the_others(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), number)
        assert interrupts.signal == number
    assert signal.getsignal(number) == before
    screen = io.StringIO()
    outcome = SweepOutcome(1, 2, signal=number)
    print_end(outcome, [], [], [], Console(file=screen), "tiny-onn ablate x.yaml", "sync")
    assert outcome.exit_code == code
    assert ("Stopped by SIGHUP: its terminal was closed: 1 of 2" in screen.getvalue()) is (number == signal.SIGHUP)
    assert "tiny-onn ablate x.yaml --resume" in screen.getvalue()


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            interrupts.hold()
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_colours_that_are_forced_make_a_file_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = io.StringIO()
    console = Console(file=screen)
    assert console.is_terminal  # as rich takes it
    with LiveView("x", [], console) as view:
        view.update()
    assert "\x1b[" not in screen.getvalue()


def test_closed_streams_are_opened_to_nowhere_before_a_file_takes_their_place(tmp_path: Path) -> None:
    """Else what is printed goes into that file, which may be the store."""
    script = (
        "import sys; from pipeline.terminal import open_standard_streams; open_standard_streams()\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    assert file.fileno() > 2\n"
        "    print('to nowhere'); print('to nowhere', file=sys.stderr); sys.stdout.flush()\n"
    )
    words = f'exec {sys.executable} -c "$0" {tmp_path}/store <&- >&- 2>&-'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(["sh", "-c", words, script], env=environment, check=False).returncode == 0
    assert (tmp_path / "store").read_text() == ""
