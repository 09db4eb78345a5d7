"""`tiny-onn doctor`: each problem is found, with its fix, and what stops a run gives exit code 1."""

import io
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

import pipeline.running.nodes
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.planning import doctor_checks, doctor_services
from pipeline.planning.doctor import Finding, Verdict, checks_of, examine, good, note, print_findings, stops
from pipeline.running.cluster import Resources
from pipeline.tracking.mlflow_process import free_port
from tests.pipeline.ray_nodes import ROOT
from tests.pipeline.running.test_ray_process import head
from tests.test_environment_table import DECISIONS

STOPS, NOTE, GOOD = Verdict.STOPS, Verdict.NOTE, Verdict.GOOD


def worst(findings: Iterable[Finding]) -> Finding:
    """The gravest of the findings."""
    return max(findings, key=lambda each: list(Verdict).index(each.verdict))


@pytest.mark.parametrize(
    ("findings", "code", "end"),
    [
        ([good("a", "x")], 0, "Nothing found that would stop a run."),
        ([note("a", "x", "y"), good("b", "z")], 0, "Nothing found that would stop a run; 1 note."),
        (
            [stops("a", "x [b]", "y"), stops("b", "x", "y"), note("c", "x", "y")],
            1,
            "2 problems would stop a run; 1 note.",
        ),
    ],
)
def test_the_exit_code_and_the_last_line(findings: list[Finding], code: int, end: str) -> None:
    screen = io.StringIO()
    assert print_findings(findings, Console(file=screen, width=40)) == code
    lines = screen.getvalue().splitlines()
    assert lines[-1] == end
    assert lines.count("      Fix: y") == sum(each.verdict is not GOOD for each in findings)
    assert (f"{findings[0].verdict.value:<5} a: {findings[0].found}") == lines[0]


def test_a_refusal_stops_a_run_and_a_check_that_fails_itself_does_not() -> None:
    def refuses() -> list[Finding]:
        raise UserError("address x: nothing answers. Expected a head.")

    def breaks() -> list[Finding]:
        raise RuntimeError("odd")

    findings = list(examine([("one", refuses), ("two", breaks)]))
    assert findings[0] == Finding("one", STOPS, "address x: nothing answers", "Expected a head.")
    assert (findings[1].verdict, findings[1].found) == (NOTE, "could not be checked (RuntimeError: odd)")


def test_on_a_machine_without_problems_the_command_ends_with_0_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["doctor", "--quick"])
    assert done.exit_code == 0, done.output
    for name, _ in checks_of(Path("runs"), None, None, quick=True):
        assert f" {name}: " in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("version", "verdict"), [((3, 10), STOPS), ((3, 11), GOOD), ((3, 14), NOTE)])
def test_python(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], verdict: Verdict) -> None:
    monkeypatch.setattr(doctor_checks.sys, "version_info", (*version, 0))
    assert worst(doctor_checks.python()).verdict is verdict


def test_packages_that_are_missing_of_a_refused_version_or_not_the_pinned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "missing_packages", lambda: ["ray", "mlflow"])
    finding = worst(doctor_checks.packages())
    assert (finding.verdict, finding.found, finding.fix) == (
        STOPS,
        "missing: ray, mlflow",
        "pip install 'tiny-onn[pipeline]'",
    )
    monkeypatch.setattr(doctor_checks, "missing_packages", list)
    monkeypatch.setattr(doctor_checks, "requirements_here", lambda: ["click<8", "rich"])
    finding = worst(doctor_checks.packages())
    assert finding.verdict is STOPS
    assert "allowed is <8" in finding.found
    assert finding.fix.endswith("pip install 'click<8'")
    monkeypatch.setattr(doctor_checks, "requirements_here", lambda: ["click"])
    monkeypatch.setattr(doctor_checks, "read_pins", lambda path: {"click": "7.0"})
    finding = worst(doctor_checks.packages())
    assert finding.verdict is NOTE
    assert "expected 7.0" in finding.found
    assert "--constraint" in finding.fix


def test_cores_as_the_container_limits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks.os, "cpu_count", lambda: 64)
    for usable, load, verdict in ((1.0, 0.0, NOTE), (4.0, 0.0, GOOD), (4.0, 7.0, NOTE)):
        monkeypatch.setattr(doctor_checks, "local_resources", lambda usable=usable: Resources(usable))
        monkeypatch.setattr(doctor_checks.os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        finding = worst(doctor_checks.cores())
        assert finding.verdict is verdict
        assert finding.found.startswith(f"{usable:g} of 64")


@pytest.mark.parametrize(("size", "verdict"), [(1e9, STOPS), (3e9, NOTE), (8e9, GOOD)])
def test_memory(monkeypatch: pytest.MonkeyPatch, size: float, verdict: Verdict) -> None:
    monkeypatch.setattr(doctor_checks, "machine_memory", lambda: size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1e9))
    assert worst(doctor_checks.memory()).verdict is verdict


@pytest.mark.parametrize(("allowed", "verdict"), [(256, STOPS), (1024, NOTE), (65536, GOOD)])
def test_open_files(monkeypatch: pytest.MonkeyPatch, allowed: int, verdict: Verdict) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (allowed, 65536))
    assert worst(doctor_checks.limits()).verdict is verdict


def test_an_output_folder_that_cannot_be_used_or_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    finding = worst(examine([("output", lambda: doctor_checks.output(tmp_path / "file"))]))
    assert finding.verdict is STOPS
    assert finding.fix == "Expected a folder that can be written to."
    for free, verdict in ((1e8, STOPS), (1e9, NOTE), (1e10, GOOD)):
        monkeypatch.setattr(doctor_checks, "check_output", lambda folder, free=free: free)
        assert worst(doctor_checks.output(tmp_path)).verdict is verdict


def test_a_compiler_that_is_missing_and_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "absent-compiler")
    finding = worst(doctor_checks.compiler())
    assert (finding.verdict, "absent-compiler" in finding.found) == (NOTE, True)
    monkeypatch.setattr(doctor_checks, "local_resources", lambda: Resources(2.0, 1.0))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    finding = worst(doctor_checks.gpu())
    assert finding.verdict is NOTE
    assert finding.found.startswith("1 in /dev")


def test_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        monkeypatch.setattr(doctor_services, "_SERVER_PORT", taken.getsockname()[1])
        assert worst(doctor_services.ports()).verdict is NOTE

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("not allowed")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert worst(doctor_services.ports()).verdict is STOPS


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor_services._PROXIES:
        monkeypatch.delenv(name, raising=False)
    assert worst(doctor_services.proxies("http://10.0.0.5:5000")).found == "none"
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy:3128")
    assert worst(doctor_services.proxies("http://127.0.0.1:5000")).verdict is GOOD
    finding = worst(doctor_services.proxies("http://10.0.0.5:5000"))
    assert (finding.verdict, finding.fix) == (NOTE, "If it cannot reach 10.0.0.5: no_proxy=10.0.0.5")
    assert "secret" not in finding.found


def test_variables_are_reported_as_the_table_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor_services._WITH_EFFECT:
        assert DECISIONS[name].startswith("honour"), name
    for name in doctor_services._IGNORED:
        assert DECISIONS[name].startswith("no effect"), name
    for name in list(os.environ):
        if name.startswith(("RAY_", "TUNE_", "MLFLOW_", "TORCH", "TINY_ONN_", "PYTHONPATH", "CUDA_")):
            monkeypatch.delenv(name)
    assert [each.verdict for each in doctor_services.environment(True)] == [GOOD]
    for name, value in {"RAY_TRAIN_V2_ENABLED": "0", "RAY_ADDRESS": "x:1", "MLFLOW_RUN_ID": "y"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    said = [each.found for each in doctor_services.environment(True) if each.verdict is NOTE]
    assert said == [
        "RAY_TRAIN_V2_ENABLED=0 is overridden: 1",
        "RAY_ADDRESS has no effect on a cluster of our own",
        "MLFLOW_RUN_ID has no effect",
        "TORCH_COMPILE_DISABLE is set: training runs uncompiled",
    ]
    assert "RAY_ADDRESS" not in str([*doctor_services.environment(False)])


def test_a_cluster_and_a_tracker_that_do_not_answer(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    words = ["doctor", "--address", f"127.0.0.1:{port}", "--tracking-uri", f"http://127.0.0.1:{port}"]
    done = CliRunner().invoke(main, [*words, "--output", str(tmp_path / "runs")])
    assert done.exit_code == 1
    assert f"stops a run Ray: address 127.0.0.1:{port}: nothing answers" in done.output
    assert f"stops a run tracker: tracking URI http://127.0.0.1:{port}: cannot be used" in done.output
    assert "Fix: Expected the head of a running Ray cluster; start it with `ray start --head`" in done.output
    assert "2 problems would stop a run" in done.output


@pytest.mark.slow
def test_a_cluster_that_answers_and_a_node_that_is_not_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is asked for its token, its versions and the output folder."""
    port, describe_node = free_port("127.0.0.1", None), pipeline.running.nodes.describe_node
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def other(mark: str | None) -> dict[str, object]:
        return {**describe_node(mark), "sees": False}

    with tempfile.TemporaryDirectory(dir="/tmp") as short, head(Path(short), port) as address:
        findings = once_it_is_up(address, tmp_path)
        assert [each.verdict for each in findings] == [GOOD, GOOD], findings
        assert findings[0].found == f"{address} can be joined: 1 node, 1 CPUs, 0 GPUs"
        monkeypatch.setattr(pipeline.running.nodes, "describe_node", other)
        findings = list(examine([("Ray", lambda: doctor_services.ray_cluster(address, tmp_path))]))
        assert [each.verdict for each in findings] == [GOOD, STOPS]
        assert f"does not see {tmp_path}" in f"{findings[1].found} {findings[1].fix}"


def once_it_is_up(address: str, output: Path, seconds: float = 180.0) -> list[Finding]:
    """The findings about a cluster, which lets nobody in for a while after its port answers."""
    deadline = time.monotonic() + seconds
    while True:
        findings = list(examine([("Ray", lambda: doctor_services.ray_cluster(address, output))]))
        if findings[0].verdict is GOOD or time.monotonic() > deadline:
            return findings
        time.sleep(1)


def test_ray_starts_here(tmp_path: Path) -> None:
    (finding,) = doctor_services.ray_cluster(None, tmp_path)
    assert finding.verdict is GOOD
    assert finding.found.startswith("starts on this machine: 1 node, ")
