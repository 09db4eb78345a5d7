"""What Ray reads from this process and leaves in it: set while a cluster is used, and put back afterwards."""

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.ray_private import environment_of_now, read_environment_again

# What this project relies on, whatever the user has set. Read by Ray when it is imported, and by the processes that it
# starts.
NEEDED = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a late call after the shutdown would start a second cluster
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer reporter prints even in silent mode
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths and imports mean the same in a worker as in the command
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` it would pack this folder and build an environment a worker
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Shorter starts: fewer helper processes for each trial.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
}
# What a user may set otherwise.
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read: result.json files are
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "3600",
    # A trial whose machine is gone, or taken by others, waits for it; by default it would fail after half a minute. Ray
    # tries three times: six hours in all, then the trial fails with this reason, and --resume takes it up.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "7200",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # quicker polls
}
# Of a cluster of our own: Ray then takes 127.0.0.1 for this machine's address and listens nowhere else.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_NOT_OURS = ("RAY_RUNTIME_ENV_HOOK", "RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")  # of a cluster of our own
_PREFIXES = ("RAY_", "TUNE_")
_LONGEST_SOCKET = 107  # bytes of a socket's path, by Linux
_OF_A_SESSION = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def ray_process(own_cluster: bool) -> Iterator[None]:
    """Sets what Ray reads, and in the end puts all of RAY_* and TUNE_* back as it was.

    Ray itself leaves RAY_AUTH_MODE=token behind after a cluster of its own, and remembers it and the token in the
    process; a cluster without authentication that is joined next would not answer.

    Args:
        own_cluster: started here, and not joined. It gets a token of its own, in the environment alone: by itself Ray
            would write one into the home, where others may read it, or the user may not write.
    """
    before = _of_ray()
    try:
        os.environ.update(NEEDED)
        os.environ.update({name: value for name, value in DEFAULTS.items() if name not in before})
        if own_cluster:
            for name in _NOT_OURS:
                os.environ.pop(name, None)
            os.environ.update(_LOOPBACK)
            os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        read_environment_again()
        with environment_of_now():
            yield
    finally:
        for name in _of_ray():
            if name not in before:
                del os.environ[name]
        os.environ.update(before)
        read_environment_again()


@contextmanager
def hangup_held() -> Iterator[None]:
    """Holds back SIGHUP in this thread, and for good in the processes that it starts: a terminal that is closed signals
    all of them at once, and Ray's would be gone before the command can end its trials in order."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def short_folder() -> str | None:
    """Where a cluster of our own keeps its sockets, if the default has too long a path for them; None if it has not.

    Raises:
        UserError: no shorter one can be written to.
    """
    default = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(default + _OF_A_SESSION)) <= _LONGEST_SOCKET and _usable(default):
        return None
    for place in _SHORT:
        if _usable(place):
            return f"{place}/ray"
    raise UserError(
        f"TMPDIR={default}: cannot be used for Ray's sockets, whose paths may have {_LONGEST_SOCKET} bytes, and none "
        f"of {', '.join(_SHORT)} can be written to. Expected a short path to a folder that can be written to."
    )


def _usable(place: str) -> bool:
    return Path(place).is_dir() and os.access(place, os.W_OK | os.X_OK)


def _of_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
