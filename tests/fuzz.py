"""Fuzzes the readers of foreign bytes: python -m tests.fuzz --minutes 10 [--target arc] [--seed 0] [--jobs 2]

Guided by coverage: by atheris where it is installed, else by the lines of `pipeline` that an input leads through. Each
target runs in a process of its own, so that a crash inside a library is a finding too. Findings are kept, one for each
place, in build/fuzz/<target>/, and make the exit code 1; --input FILE tries one of them again.
"""

import argparse
import hashlib
import importlib.util
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
FINDINGS = ROOT / "build" / "fuzz"
NAMES = [
    "arc",
    "tokens",
    "yaml",
    "config",
    "shards",
    "solutions",
    "parquet",
    "lengths",
    "text",
    "json",
    "names",
    "index",
    "attempt",
    "lease",
    "claim",
    "tracked",
    "destination",
    "record",
    "spool",
    "pieces",
    "memories",
    "attempts",
    "pruned",
    "checkpoint",
    "model",
    "snapshot",
    "distributions",
    "predictions",
    "examples",
    "scores",
    "jobs",
    "token",
    "pins",
    "address",
    "result",
    "trial_config",
    "code",
    "lock",
    "profile",
]
_CODE = str(ROOT / "pipeline")
_MEMORY_BYTES = 8 * 2**30
_LONGEST = 20_000

Edge = tuple[CodeType, int, int]


def main() -> int:
    """Runs the targets, a few at a time; 1 if there is a finding."""
    names = NAMES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target; default: 10")
    parser.add_argument("--target", choices=names, action="append", help="default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time; default: one a core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["lines", "atheris"], help="default: atheris where it is installed")
    parser.add_argument("--input", type=Path, help="only tries this file on --target")
    asked = parser.parse_args()
    if asked.input:
        with tempfile.TemporaryDirectory() as folder:
            _target(asked.target[0], Path(folder)).run(asked.input.read_bytes())
        return 0
    engine = asked.engine or ("atheris" if importlib.util.find_spec("atheris") else "lines")
    left, failed = list(asked.target or names), 0
    running: dict[str, tuple[BaseProcess, set[Path]]] = {}
    while left or running:
        while left and len(running) < asked.jobs:
            name = left.pop(0)
            running[name] = _started(name, engine, asked.minutes * 60, asked.seed)
        wait([process.sentinel for process, _ in running.values()])
        for name, (process, before) in list(running.items()):
            if not process.is_alive():
                process.join()
                del running[name]
                failed += _summarize(name, process.exitcode, before)
    return 1 if failed else 0


def _started(name: str, engine: str, seconds: float, seed: int) -> tuple[BaseProcess, set[Path]]:
    """A target's process, and the findings of earlier ones."""
    (FINDINGS / name).mkdir(parents=True, exist_ok=True)
    before = set((FINDINGS / name).glob("finding-*"))
    run = _atheris if engine == "atheris" else _lines
    process = multiprocessing.get_context("spawn").Process(target=run, args=(name, seconds, seed))
    process.start()
    return process, before


def _summarize(name: str, code: int | None, before: set[Path]) -> bool:
    """Names the findings of a target that has ended; whether there are any. An end without one is a finding too."""
    folder = FINDINGS / name
    findings = sorted(set(folder.glob("finding-*")) - before)
    if code and not findings:
        last = folder / f"finding-exit{code}"
        last.write_bytes((folder / "last").read_bytes() if (folder / "last").exists() else b"")
        findings = [last]
        print(f"{name}: the process ended with {code}")
    for path in findings:
        print(f"{name}: {path}", flush=True)
    return bool(findings)


def explore(
    run: Callable[[bytes], object],
    seeds: tuple[bytes, ...],
    words: tuple[bytes, ...],
    seconds: float,
    chance: random.Random,
    note: Callable[[bytes], object] = lambda data: None,
    stop_at_first: bool = False,
) -> tuple[int, int, dict[str, tuple[bytes, str]]]:
    """Mutates inputs, keeping those that lead along a new edge between lines; (runs, edges, findings by place).

    `note` is told each input before it is run.
    """
    corpus, edges, runs = [b"", *seeds], set[Edge](), 0
    findings: dict[str, tuple[bytes, str]] = {}
    waiting = list(seeds)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (stop_at_first and findings):
        data = waiting.pop() if waiting else mutate(chance.choice(corpus), corpus, words, chance)
        note(data)
        runs += 1
        seen, error = _traced(run, data)
        if error is not None:
            place, text = _place(error)
            known = findings.get(place)
            if known is None or len(data) < len(known[0]):
                findings[place] = (data, text)
        elif not seen <= edges:
            corpus.append(data)
        edges |= seen
    return runs, len(edges), findings


def mutate(data: bytes, corpus: list[bytes], words: tuple[bytes, ...], chance: random.Random) -> bytes:
    """A few changes: bits flipped, bytes or words put in, parts left out, doubled or taken from another input."""
    new = bytearray(data)
    for _ in range(1 << chance.randrange(5)):
        start = chance.randrange(len(new) + 1)
        stop = min(len(new), start + (1 << chance.randrange(8)))
        match chance.randrange(8):
            case 0 if new:
                new[chance.randrange(len(new))] ^= 1 << chance.randrange(8)
            case 1:
                new[start:start] = chance.randbytes(1 + chance.randrange(4))
            case 2:
                del new[start:stop]
            case 3:
                new[start:start] = new[start:stop] * (1 + chance.randrange(4))
            case 4:
                other = chance.choice(corpus)
                begin = chance.randrange(len(other) + 1)
                new[start:stop] = other[begin : begin + (1 << chance.randrange(8))]
            case 5 | 6 if words:
                new[start:start] = chance.choice(words)
            case 7 if words:
                new[start : min(stop, start + 4)] = chance.choice(words)
    return bytes(new[:_LONGEST])


def _lines(name: str, seconds: float, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    folder = FINDINGS / name
    with tempfile.TemporaryDirectory() as scratch:
        target = _target(name, Path(scratch))
        runs, edges, findings = explore(
            target.run, target.seeds, target.words, seconds, random.Random(seed), (folder / "last").write_bytes
        )
    print(
        f"{name}: {runs} inputs in {seconds:.0f} s, {edges} edges between lines, {len(findings)} findings", flush=True
    )
    for place, (data, text) in findings.items():
        path = folder / f"finding-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
        path.write_bytes(data)
        print(f"\n{name}: {path}\n{text}", flush=True)
    sys.exit(1 if findings else 0)


def _atheris(name: str, seconds: float, seed: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["pipeline", "yaml"]), tempfile.TemporaryDirectory() as folder:
        target = _target(name, Path(folder))
        findings = FINDINGS / name
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for i, data in enumerate(target.seeds):
            (corpus / str(i)).write_bytes(data)
        words = "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
        (Path(folder) / "words").write_text(words)

        def run(data: bytes) -> None:
            (findings / "last").write_bytes(data)
            target.run(data)

        options = [f"-max_total_time={seconds:.0f}", f"-seed={seed or 1}", f"-max_len={_LONGEST}", "-timeout=30"]
        options += ["-rss_limit_mb=4096", f"-dict={folder}/words", f"-artifact_prefix={findings}/finding-"]
        atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", "-verbosity=1", str(corpus)], run)
        atheris.Fuzz()


def _target(name: str, folder: Path) -> Any:
    from tests.fuzz_targets import TARGETS  # late, so that atheris sees the import

    return TARGETS[name](folder)


def _traced(run: Callable[[bytes], object], data: bytes) -> tuple[set[Edge], Exception | None]:
    """The edges between lines of `pipeline` that a run goes along, and what it raises."""
    edges: set[Edge] = set()

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_CODE):
            return None
        before = 0

        def follow(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal before
            if event == "line":
                edges.add((frame.f_code, before, frame.f_lineno))
                before = frame.f_lineno
            return follow

        return follow

    sys.settrace(enter)
    try:
        run(data)
    except Exception as error:
        return edges, error
    finally:
        sys.settrace(None)
    return edges, None


def _place(error: Exception) -> tuple[str, str]:
    """Where an error came from, the same for the same fault, and its traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
    last = frames[-1]
    return f"{type(error).__name__} {last.filename}:{last.lineno}", "".join(traceback.format_exception(error))


if __name__ == "__main__":
    sys.exit(main())
