"""Text as passages: documents are read, repeated paragraphs dropped, and passages that share words kept together."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.arc_json import printable
from pipeline.errors import UserError

# Two passages that have so many words in a row in common are kept on one side of the split: the measure by which
# Brown et al. (2020, arXiv 2005.14165) looked for what their training and test texts share.
SHARED_WORDS = 13
_REPEATED_WORDS = 5  # a paragraph of at least so many words that occurs again is dropped where it does
_LARGEST_FILE = 2**28  # bytes
_WORD = re.compile(r"\w{1,12}")  # longer runs, of scripts without spaces, in pieces
_BREAK = re.compile(r"(\n[ \t]*\n\s*)")


@dataclass(frozen=True)
class Passage:
    """A part of a document: `number` counts a document's passages from 0, `data` are its bytes, UTF-8."""

    document: str
    number: int
    data: bytes

    @property
    def name(self) -> str:
        """Tells it from all others."""
        return f"{self.document}:{self.number}"


@dataclass(frozen=True)
class Documents:
    """Texts by name, in order; why others were refused."""

    texts: dict[str, str]
    refused: tuple[str, ...] = ()

    def digest(self) -> str:
        """Changes with any name or text."""
        sha = hashlib.sha256()
        for name, text in self.texts.items():
            data = text.encode()
            sha.update(f"{len(name.encode())} {len(data)} ".encode() + name.encode() + data)
        return sha.hexdigest()


def python_topics() -> Documents:
    """The prose of Python's own help, about 460 kB of English on the language, as this version of Python has it."""
    from pydoc_data.topics import topics

    return Documents({name: topics[name] for name in sorted(topics)})


def read_texts(folder: str) -> Documents:
    """Every file of UTF-8 text in a folder and below, or one file. Hidden files are left out, empty ones skipped, and
    those that are no UTF-8 or larger than 256 MiB refused by name.

    Raises:
        UserError: it is not there, cannot be read, or holds no text.
    """
    root = Path(os.path.expanduser(folder))
    texts: dict[str, str] = {}
    refused: list[str] = []
    try:
        root.stat()
        for path in _files(root):
            name = path.name if path == root else path.relative_to(root).as_posix()
            if printable(path) != str(path):
                refused.append(f"{printable(path)}: the file's name is not UTF-8")
            elif isinstance(text := _text(path), UserError):
                refused.append(str(text))
            elif text.strip():
                texts[name] = text
    except OSError as error:
        raise UserError(
            f"data.folder: {root} cannot be read ({error.strerror or error}). Expected a file of UTF-8 text, or a "
            "folder of text files."
        ) from None
    if not texts:
        listed = "".join(f"\n  {line}" for line in refused[:10])
        raise UserError(
            f"data.folder: {root} holds no text; expected a file of UTF-8 text, or a folder of text files.{listed}"
        )
    return Documents(texts, tuple(refused))


def passages(documents: Documents, most: int) -> tuple[list[Passage], str]:
    """Each document in passages of at most `most` bytes, cut between paragraphs where that can be, else between words;
    and a note of what was dropped.

    A paragraph of five words or more that has occurred before, in whatever document, but for its spaces and case, is
    dropped: what is repeated would be learnt by heart, and would be in training and held-out text.
    """
    seen: set[bytes] = set()
    pieces: list[Passage] = []
    dropped = dropped_bytes = 0
    for document, text in documents.texts.items():
        kept: list[bytes] = []
        for paragraph in _paragraphs(text):
            words = _words(paragraph)
            mark = _hash(words)
            if len(words) >= _REPEATED_WORDS and mark in seen:
                dropped, dropped_bytes = dropped + 1, dropped_bytes + len(paragraph.encode())
                continue
            seen.add(mark)
            kept += _cut(paragraph.encode(), most)
        pieces += [Passage(document, number, data) for number, data in enumerate(_packed(kept, most))]
    note = f"{dropped:,} paragraphs ({dropped_bytes:,} bytes) repeat earlier ones and are left out" if dropped else ""
    return pieces, note


def related_passages(pieces: Sequence[Passage]) -> list[list[str]]:
    """The passages' names in the smallest groups such that no two of different groups have SHARED_WORDS words in a row
    in common; of shorter passages all words."""
    group_of = list(range(len(pieces)))
    first_with: dict[bytes, int] = {}

    def find(number: int) -> int:
        while group_of[number] != number:
            group_of[number] = number = group_of[group_of[number]]
        return number

    for number, passage in enumerate(pieces):
        for mark in _marks(passage.data.decode()):
            one, other = find(first_with.setdefault(mark, number)), find(number)
            group_of[max(one, other)] = min(one, other)
    groups: dict[int, list[str]] = {}
    for number, passage in enumerate(pieces):
        groups.setdefault(find(number), []).append(passage.name)
    return list(groups.values())


def _marks(text: str) -> set[bytes]:
    words = _words(text)
    return {_hash(words[start : start + SHARED_WORDS]) for start in range(max(1, len(words) - SHARED_WORDS + 1))}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _hash(words: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _paragraphs(text: str) -> list[str]:
    """The text in pieces, each a paragraph with the empty lines that follow it."""
    parts = [*_BREAK.split(text), ""]
    return [piece for n in range(0, len(parts), 2) if (piece := parts[n] + parts[n + 1])]


def _cut(data: bytes, most: int) -> Iterator[bytes]:
    """In pieces of at most `most` bytes, after a space or a line's end where there is one, never within a letter."""
    while len(data) > most:
        end = max(data.rfind(b" ", 0, most), data.rfind(b"\n", 0, most)) + 1
        if not end:
            end = most
            while data[end] & 0xC0 == 0x80:
                end -= 1
        yield data[:end]
        data = data[end:]
    if data:
        yield data


def _packed(pieces: list[bytes], most: int) -> Iterator[bytes]:
    """Neighbouring pieces joined, as many as fit."""
    joined = b""
    for piece in pieces:
        if joined and len(joined) + len(piece) > most:
            yield joined
            joined = b""
        joined += piece
    if joined:
        yield joined


def _files(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        yield root
        return
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _text(path: Path) -> str | UserError:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            return UserError(f"{path}: is no file; expected UTF-8 text")
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            return UserError(f"{path}: has more than {_LARGEST_FILE:,} bytes; expected smaller files of text")
        return data.decode("utf-8-sig")
    except OSError as error:
        return UserError(f"{path}: cannot be read ({error.strerror or error})")
    except UnicodeDecodeError as error:
        return UserError(f"{path}: is no UTF-8 text (byte {error.start}: {error.reason})")
