"""A file appears whole, or not at all. No torch."""

from __future__ import annotations

import errno
import os
import tempfile
from glob import escape
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in.

    Raises:
        OSError: that names the folder, whichever of them could not be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def check_writable(folder: Path) -> None:
    """Find out before the work whether its results can be written; leaves nothing behind.

    Args:
        folder: it need not be there yet.

    Raises:
        OSError: it could not be made, or a file in it.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    try:
        with tempfile.TemporaryFile(dir=there, buffering=0) as probe:
            probe.write(b"x")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(there)) from None


def _remove_left_over(file: Path) -> None:
    """What processes that were killed have left of the same file."""
    for staged in file.parent.glob(f".{escape(file.name)}.*"):
        pid = staged.suffix.removeprefix(".")
        if pid.isdecimal() and not _runs(int(pid)):
            staged.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def publish(file: Path, content: str) -> None:
    """Write a text file in one step, in place of one that may be there.

    Raises:
        OSError: that names the file.
    """
    make_folder(file.parent)
    _remove_left_over(file)
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        staged.write_text(content, encoding="utf-8")
        staged.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        staged.unlink(missing_ok=True)
