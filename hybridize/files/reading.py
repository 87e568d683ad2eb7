"""Files as all stages read them: regular ones only, unchanged while they are in use. No torch."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hybridize.errors import Finding, HybridizeError, shorten

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST_NAME = 255  # bytes of a file's name, on every usual file system
_FIXES = {
    **dict.fromkeys(FULL, "make room, or choose another disk"),
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change the permissions, or choose another folder",
    errno.EPERM: "change the permissions, or choose another folder",
    errno.ENOTDIR: "a part of this path is a file: choose another folder",
    errno.EEXIST: "a file is in the way: remove it, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class State(NamedTuple):
    """By what a changed file is noticed without reading it."""

    inode: int
    nbytes: int
    modified_ns: int


def state_of(path: Path) -> State | None:
    """None: there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return State(found.st_ino, found.st_size, found.st_mtime_ns)


def refuse_changed(before: Mapping[Path, State | None]) -> None:
    """Compare files with what they were when they were first read.

    Raises:
        HybridizeError: some have changed since then, all of them.
    """
    changed = [path for path, state in before.items() if state_of(path) != state]
    if changed:
        raise HybridizeError.of(
            Finding("changed while it was in use", "run this again", str(path)) for path in changed
        )


def states_of(paths: Iterable[Path]) -> dict[Path, State | None]:
    """Of each file."""
    return {path: state_of(path) for path in paths}


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading; a pipe would be waited for, a device read without end.

    Raises:
        HybridizeError: it cannot be opened or read, or is something else.
        FileNotFoundError: it is missing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError:  # a NUL, or half a character
        raise HybridizeError("is not a file name", place=shorten(repr(str(path)))) from None
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise HybridizeError("is not a regular file", place=shorten(str(path)))
        try:
            yield stream
        except OSError as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> HybridizeError:
    return HybridizeError(f"cannot be read: {error.strerror or error}", place=shorten(str(path)))


def expanded(path: str) -> Path:
    """A path as a user writes it; the home of a user that is not there is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_file_name(name: str) -> bool:
    """Whether a file could be called so."""
    try:
        return 0 < len(os.fsencode(name)) <= LONGEST_NAME and "\0" not in name
    except UnicodeEncodeError:  # half a character
        return False


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; see `opened`."""
    with opened(path) as stream:
        return stream.read()


def system_error(error: OSError) -> HybridizeError:
    """What the system says about a file, as a message."""
    if error.errno in FULL:
        found = f"the disk is full: {error.strerror}"
    else:
        found = str(error.strerror or error)
    places = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    place = " -> ".join(map(shorten, places)) or None
    return HybridizeError(found, fix=_FIXES.get(error.errno or 0), place=place)
