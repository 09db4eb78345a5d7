"""Which files leave this machine, one rule for all that sends any: `submit`, its `--include`, and `pack` for `ray up`.

What git tracks goes. What it does not, and does not ignore, goes where the user confirms the printed list by its code.
What has the name of a secret, or is a private key, is refused by name; nothing from outside the folder goes.
"""

import fnmatch
import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

UNTRACKED = "--untracked"
_LEFT_OUT_AT_THE_TOP = ("runs", "data", "build")
_LEFT_OUT = ("node_modules", "site-packages", "__pycache__")  # and all folders whose names begin with a dot
_SHOWN = 20
_SECRET_NAMES = (
    ".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".pypirc", ".npmrc", ".yarnrc*",
    ".git-credentials", ".htpasswd", ".pgpass", ".my.cnf", ".mylogin.cnf", ".dockercfg", ".boto", ".s3cfg",
    ".vault-token", ".renviron", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12",
    "*.pfx", "*.jks", "*.keystore", "*.ppk", "*.kdbx", "*.ovpn", "*.token", "auth_token*", "token", "token.*",
    "credentials", "credentials.*", "*credential*.json", "*credential*.y*ml", "client_secret*",
    "*service*account*.json", "*secret*.json", "*secret*.y*ml", "*secret*.toml", "*secret*.txt",
    "*secret*.ini", "*secret*.cfg", "*password*.txt", "secrets", "kubeconfig*", "*.kubeconfig",
    "terraform.tfstate*", "*.tfvars",
)  # fmt: skip
_SECRET_FOLDERS = (".ssh", ".aws", ".azure", ".gcloud", ".gnupg", ".kube", ".docker", "secrets", ".secrets")
_SAMPLES = ("*.pub", "*.example", "*.sample", "*.template", "*.dist", "*.py")
_PRIVATE_KEY = re.compile(rb"\s*(-----BEGIN [A-Z ]*PRIVATE KEY-----|PuTTY-User-Key-File)")


@dataclass(frozen=True)
class Selection:
    """`files` go, by their paths relative to the folder; `left` are untracked and not confirmed, and stay."""

    files: tuple[Path, ...]
    left: tuple[Path, ...] = ()

    @property
    def code(self) -> str:
        """What confirms the list of those left; it changes with the list."""
        return code_of(self.left)

    def describe_left_out(self, what: str) -> str:
        """What to say of those left; "" when there are none."""
        if not self.left:
            return ""
        number = len(self.left)
        files = f"{number} files that git does not track stay" if number > 1 else "1 file that git does not track stays"
        return f"{files} here, of {what}:\n{listed(self.left)}\nTo send what is listed, too: {UNTRACKED} {self.code}"


def select(folder: Path, what: str, confirmed: Iterable[str] = (), wanted: Iterable[Path] = ()) -> Selection:
    """The files below `folder` that go.

    Left out whatever git says: `runs`, `data` and `build` at the top, caches, environments, folders whose names begin
    with a dot, and links that lead out of the folder, or to a file that does not go.

    Args:
        what: how the user named the folder, for errors: "--tree .".
        confirmed: the codes that the user gave.
        wanted: files or folders in it that the user's settings name; they go without git.

    Raises:
        UserError: a file among them looks like a secret; or git tracks nothing there, and the list is not confirmed.
    """
    listed_by_git = _listed(folder)
    tracked, others = listed_by_git if listed_by_git is not None else ([], list(walk(folder)))
    tracked, others = ([each for each in some if not _is_left_out(each)] for some in (tracked, others))
    there = [each for each in others if (folder / each).is_file()]
    known = set(confirmed)
    left = tuple(sorted(there)) if there and code_of(there) not in known else ()
    selected = {*tracked, *(() if left else there), *_wanted(folder, wanted)}
    files = sorted(path for path in selected if (folder / path).is_file() and _stays_inside(folder, path, selected))
    if left and listed_by_git is None:
        raise UserError(
            f"{what}: is not under git, so it is unknown which of its {len(left)} files should be sent:\n"
            f"{listed(left)}\nCheck the list and confirm it with {UNTRACKED} {code_of(left)}; or put the "
            "folder under git and commit the files to send."
        )
    refuse_secrets(folder, files, what)
    return Selection(tuple(files), left)


def refuse_secrets(folder: Path, files: Iterable[Path], what: str) -> None:
    """Looks at names, and at the first bytes for a private key.

    Raises:
        UserError: names the files that look like secrets.
    """
    wrong = [path for path in files if is_secret(path) or _is_private_key(folder / path)]
    if wrong:
        raise UserError(
            f"{what}: would send what looks like a secret:\n{listed(wrong)}\nMove it out of the folder, or have git "
            "forget it (`git rm --cached NAME`) and ignore it. A sample without a secret in it may be called "
            "NAME.example."
        )


def is_secret(path: Path) -> bool:
    """Whether a file's name, or that of a folder on the way, is one that secrets have."""
    name = path.name.lower()
    if any(part.lower() in _SECRET_FOLDERS for part in path.parts[:-1]):
        return True
    if any(fnmatch.fnmatchcase(name, sample) for sample in _SAMPLES):
        return False
    return any(fnmatch.fnmatchcase(name, secret) for secret in _SECRET_NAMES)


def code_of(files: Iterable[Path]) -> str:
    """Six hexadecimal digits that stand for a list of names."""
    return hashlib.sha256("\0".join(sorted(path.as_posix() for path in files)).encode("utf-8", "replace")).hexdigest()[
        :6
    ]


def listed(files: Iterable[Path]) -> str:
    """Names, one a line, as they can be shown in a terminal."""
    names = ["  " + "".join(c if c.isprintable() else "?" for c in path.as_posix()) for path in files]
    more = [f"  and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return "\n".join([*names[:_SHOWN], *more])


def walk(folder: Path, take: Callable[[Path], bool] = lambda path: True) -> Iterable[Path]:
    """All files below `folder` but those that are left out, whose folders are not entered; no link is
    followed."""
    for above, folders, files in os.walk(folder):
        here = Path(above).relative_to(folder)
        folders[:] = [name for name in folders if not _is_left_out(here / name / "any")]
        yield from (here / name for name in files if take(here / name))


def _listed(folder: Path) -> tuple[list[Path], list[Path]] | None:
    """What git tracks below `folder`, and what it neither tracks nor ignores; None where it tracks nothing."""
    listings = []
    for options in (["--cached"], ["--others", "--exclude-standard"]):
        command = ["git", "-C", str(folder), "ls-files", "-z", *options]
        try:
            git_output = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        listings.append([Path(os.fsdecode(name)) for name in git_output.split(b"\0") if name])
    return (listings[0], listings[1]) if listings[0] else None


def _wanted(folder: Path, wanted: Iterable[Path]) -> Iterable[Path]:
    for path in wanted:
        if (folder / path).is_file():
            yield path
        else:
            yield from (path / each for each in walk(folder / path))


def _stays_inside(folder: Path, path: Path, selected: set[Path]) -> bool:
    """Of a link, whether what it leads to goes as well."""
    target, root = (folder / path).resolve(), folder.resolve()
    if not target.is_relative_to(root):
        return False
    return target == root / path or target.relative_to(root) in selected


def _is_left_out(path: Path) -> bool:
    folders = path.parts[:-1]
    if path.name == ".git" or (folders and folders[0] in _LEFT_OUT_AT_THE_TOP):
        return True
    return any(name in _LEFT_OUT or name.startswith(".") for name in folders)


def _is_private_key(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(_PRIVATE_KEY.match(file.read(200)))
