"""Files mapped into memory, and the message where one is cut short while it is in use. No torch.

Reading beyond the end of a mapped file is a signal (SIGBUS) at the instruction that reads: Python's
own handlers run too late, after an instruction that never ends. So the handler is a C function that
enters Python from where the signal arrived, says which file it was, and ends the process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from hybridize.errors import HybridizeError

Tell = Callable[[HybridizeError], None]

_lengths: dict[Path, int] = {}  # of the files that were mapped, then
_tell: Tell = lambda error: print(error, file=sys.stderr, flush=True)  # noqa: E731, T201


def map_file(file: Path) -> mmap.mmap:
    """A file's content; the page cache is its memory."""
    with file.open("rb") as stream:
        # Private pages that may be written to, though nobody does: torch asks for it.
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    _lengths[file] = len(mapped)
    _install()
    return mapped


def tell_by(tell: Tell) -> None:
    """Say it otherwise than on standard error: to the process that asked."""
    global _tell
    _tell = tell


def cut_file() -> HybridizeError:
    """Which mapped file it was."""
    for file, length in _lengths.items():
        try:
            now = file.stat().st_size
        except OSError:  # removed or replaced: what was mapped is still there, and whole
            continue
        if now < length:
            found = f"cut short while it was in use: {now} of {length} bytes are left"
            return HybridizeError(found, fix="copy it again, and run this again", place=str(file))
    return HybridizeError("a file that was in use became shorter, or its disk failed")


def _end(_: int) -> None:
    try:
        _tell(cut_file())
    finally:
        os._exit(HybridizeError.exit_status)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)


def _install() -> None:
    """Take the signal; again each time, since a library may have taken it meanwhile."""
    if sys.platform == "linux":
        ctypes.CDLL(None).signal(signal.SIGBUS, _handler)
