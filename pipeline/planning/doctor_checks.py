"""What `tiny-onn doctor` looks at on the machine itself: Python, packages, cores, memory, compiler, GPU, folders."""

import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from pipeline.extra import missing_packages, requirements_here
from pipeline.planning.doctor import Finding, good, note, stops
from pipeline.planning.memory import machine_memory
from pipeline.planning.preflight import check_output
from pipeline.running.cluster import local_resources
from pipeline.running.pins import disagreements, installed, read_pins
from pipeline.running.ray_process import short_folder

_TESTED = ((3, 11), (3, 13))
_TREE = Path(__file__).parents[2]
# The smallest trial is a worker of 0.7 GB, its driver of 0.25 GB and the command; the ablation has two trials of two.
_LEAST_BYTES, _ABLATION_BYTES = 1.5e9, 4.2e9
_LEAST_DISK, _ENOUGH_DISK = 0.5e9, 5e9
_LEAST_FILES, _ENOUGH_FILES = 512, 4096
_LEAST_SHM = 0.2e9


def python() -> Iterator[Finding]:
    """The interpreter and the system that trials run on."""
    found, here = f"{platform.python_version()} in {sys.executable}", sys.version_info[:2]
    if here < _TESTED[0]:
        yield stops("Python", found, "Use Python 3.11 or newer: make PYTHON=python3.12")
    elif here > _TESTED[1]:
        yield note("Python", f"{found}, newer than what is tested", "Use Python 3.11 to 3.13 if something fails.")
    else:
        yield good("Python", found)
    if platform.system() != "Linux":
        yield note("system", platform.system(), "Only Linux is tested. Use a container, or a Linux machine.")


def packages() -> Iterator[Finding]:
    """What is installed, against the allowed ranges and the pins of the project's tree, where it is run from one."""
    from packaging.requirements import Requirement

    if missing := missing_packages():
        yield stops("packages", f"missing: {', '.join(missing)}", "pip install 'tiny-onn[pipeline]'")
        return
    wanted = [Requirement(each) for each in requirements_here()]
    pip = f"{sys.executable} -m pip install"
    for each in wanted:
        if not each.specifier.contains(version(each.name), prereleases=True):
            found = f"{each.name} is {version(each.name)}, allowed is {each.specifier}"
            yield stops("packages", found, f"{pip} '{each.name}{each.specifier}'")
    constraints = _TREE / "constraints.txt"
    names = [each.name.lower() for each in wanted]
    ours = f"{len(names)} that tiny-onn names" if names else "tiny-onn itself is not installed"
    if not constraints.is_file():
        yield good("packages", ours)
        return
    pins = read_pins(constraints)
    differing = disagreements({name: pins[name] for name in names if name in pins}, installed(dict.fromkeys(names, "")))
    if differing:
        fix = f"To have what the tests ran with: {pip} --constraint {constraints} --editable '{_TREE}[dev]'"
        yield note("packages", "; ".join(differing), fix)
    else:
        yield good("packages", f"{ours}, as in {constraints}")


def cores() -> Iterator[Finding]:
    """What this process may use, by affinity and the container's quota."""
    usable, there = local_resources().cpus, os.cpu_count() or 1
    limited = f" of {there}, by affinity or the container's quota" if usable < there else ""
    text = f"{usable:g}{limited}"
    busy = os.getloadavg()[0]
    if usable < 2:
        yield note("cores", text, "Trials run one at a time. Give the container more, as by docker run --cpus 2.")
    elif busy > 1.5 * usable:
        yield note("cores", f"{text}, but {busy:.1f} processes want them", "End other work, or expect longer times.")
    else:
        yield good("cores", text)


def memory() -> Iterator[Finding]:
    """What the machine or its container has."""
    total = machine_memory()
    text = f"{total / 1e9:.1f} GB, limits of the container included"
    if total < _LEAST_BYTES:
        yield stops("memory", text, "A trial needs about 1.5 GB: use a larger machine, or raise the container's limit.")
    elif total < _ABLATION_BYTES:
        yield note("memory", text, "The ablation takes 4.1 GB: use --set sweep.max_concurrent=1.")
    else:
        yield good("memory", text)
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < _LEAST_SHM:
        yield note(
            "shared memory", f"/dev/shm has {size / 1e6:.0f} MB", "docker run --shm-size=1g; else Ray is slower."
        )


def limits() -> Iterator[Finding]:
    """How many files a process may open."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < _LEAST_FILES:
        yield stops("open files", f"at most {allowed}", f"ulimit -n {min(most, 65536) if most > 0 else 65536}")
    elif allowed < _ENOUGH_FILES:
        yield note("open files", f"at most {allowed}", "For many trials at once: ulimit -n 65536")
    else:
        yield good("open files", f"at most {allowed}")


def output(folder: Path) -> Iterator[Finding]:
    """Whether results can be written, and how much."""
    there = folder.exists()
    free = check_output(folder)
    if not there:
        folder.rmdir()
    text = f"{folder.absolute()} can be written to, {free / 1e9:.1f} GB free"
    if free < _LEAST_DISK:
        yield stops("output", text, "Make room, or name another folder with --output.")
    elif free < _ENOUGH_DISK:
        yield note("output", text, "Enough for small studies: `tiny-onn plan CONFIG` says what one takes.")
    else:
        yield good("output", text)


def temporary() -> Iterator[Finding]:
    """Where Ray puts its sockets."""
    instead = short_folder()
    found = "can be used for Ray's sockets"
    if instead:
        found = f"TMPDIR={os.environ.get('TMPDIR')} has too long a path for Ray's sockets; {instead} is used"
    yield good("temporary files", found)


def compiler() -> Iterator[Finding]:
    """Whether torch.compile works on the CPU."""
    from tiny_onn.compiling import compiler_problem

    problem = compiler_problem("cpu")
    if problem is None:
        yield good("compiler", "a C++ compiler works")
    else:
        fix = "apt-get install g++ python3-dev, or another compiler by CXX. Without one a step takes about 1.4 times."
        yield note("compiler", problem, fix)


def gpu() -> Iterator[Finding]:
    """Whether torch can use the GPUs that the machine has."""
    import torch

    there = int(local_resources().gpus)
    if not there:
        yield good("GPU", "none; trials run on CPUs")
        return
    if not torch.cuda.is_available():
        found = f"{there} in /dev, but torch {torch.__version__} cannot use them"
        yield note("GPU", found, "Install torch with CUDA, and a driver (nvidia-smi), or leave workers.gpus at 0.")
        return
    names = sorted({torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())})
    yield good("GPU", f"{torch.cuda.device_count()} ({', '.join(names)}); use them by --set workers.gpus=1")
    from tiny_onn.compiling import compiler_problem

    if problem := compiler_problem("cuda"):
        yield note("GPU compiler", problem, "Install gcc and triton; without them trials run uncompiled.")
