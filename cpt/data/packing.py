"""Rows in files: they grow under another name, and appear whole, in the cache, by a rename."""

from __future__ import annotations

import errno
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np

from hybridize.cpt.data.blocks import Array, Blocks, Document, Packer, digest

FORMAT = 2  # of the folder; part of every key
TRAIN, HELD_OUT = "train", "held-out"
NOTE = "rows.json"
ARRAYS = ("tokens", "labels", "positions")
STAGING = ".staging"
STALE = 86_400.0  # seconds since its files grew, after which a staging folder's process is dead


@dataclass(frozen=True)
class Packed:
    """Rows of one text, mapped into memory.

    Attributes:
        note: what was read and what became of it; `train` and `held-out` have the number of rows
            and of tokens that they predict, and their hash.
    """

    train: Blocks
    held_out: Blocks
    note: dict[str, Any]


class Growing:
    """Rows of one part of a text, written to .npy files as they fill up.

    Attributes:
        num_targets: tokens that the documents so far predict.
        num_rows: that are written.
    """

    def __init__(self, folder: Path, length: int, *, packed: bool) -> None:
        self.folder, self.length = folder, length
        self.num_targets = self.num_rows = 0
        self._packer = Packer(length, packed=packed, full=self._append)
        self._open = ExitStack()
        folder.mkdir()
        self._files = [self._open.enter_context(file.open("wb")) for file in _files(folder)]
        for file in self._files:
            file.write(_header(0, length))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, document: Document) -> None:
        """Write what it fills; the rest waits."""
        self.num_targets += max(0, len(document.tokens) - 1)
        self._packer.add(document)

    def finish(self) -> dict[str, Any]:
        """Write what is left, and the number of rows into each header; what to note of them."""
        self._packer.finish()
        for file in self._files:
            file.seek(0)
            file.write(_header(self.num_rows, self.length))
        self._open.close()
        rows = _map(self.folder, self.num_rows, self.length)
        return {"rows": self.num_rows, "tokens": self.num_targets, "blake3": digest(rows)}

    def _append(self, rows: Blocks) -> None:
        for file, array in zip(
            self._files, (rows.tokens, rows.labels, rows.positions), strict=True
        ):
            file.write(np.ascontiguousarray(array).data)
        self.num_rows += len(rows)


def find(folder: Path) -> Packed | None:
    """The rows in a folder of the cache; None: there are none, or they are damaged."""
    try:
        note = json.loads((folder / NOTE).read_bytes())
        if (note["format"], note["key"]) != (FORMAT, folder.name):
            return None
        return _packed(folder, note)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A folder beside one that is to appear; afterwards it is gone, whatever happened."""
    _remove_stale(folder.parent)
    staged = _beside(folder)
    staged.mkdir(parents=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def publish_blocks(staged: Path, folder: Path, note: Mapping[str, Any]) -> Packed:
    """Let the rows in a staging folder appear as `folder`, named after their key.

    Where another process has been quicker, its rows are taken: they are the same.

    Args:
        note: of both parts, and whatever else is to be known of the rows.
    """
    whole = {"format": FORMAT, "key": folder.name, **note}
    (staged / NOTE).write_text(json.dumps(whole))
    # Mapped before the rename: even if the folder is removed then, these rows stay readable.
    mine = _packed(staged, whole)
    while True:
        try:
            staged.rename(folder)
            return find(folder) or mine
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if (theirs := find(folder)) is not None:
            return theirs
        _discard(folder)


def _packed(folder: Path, note: dict[str, Any]) -> Packed:
    train, held_out = (
        _map(folder / part, note[part]["rows"], note["length"]) for part in (TRAIN, HELD_OUT)
    )
    return Packed(train, held_out, note)


def _map(folder: Path, num_rows: int, length: int) -> Blocks:
    """Rows of one part.

    Raises:
        ValueError: a file is not of the size or kind that it should be.
    """
    header = _header(num_rows, length)
    arrays: list[Array] = []
    for file in _files(folder):
        nbytes = len(header) + num_rows * length * np.dtype(np.int32).itemsize
        with file.open("rb") as stream:
            if file.stat().st_size != nbytes or stream.read(len(header)) != header:
                raise ValueError(f"{file} is damaged")
            arrays.append(np.memmap(stream, np.int32, "r", len(header), (num_rows, length)))
    return Blocks(*arrays)


def _files(folder: Path) -> list[Path]:
    return [folder / f"{name}.npy" for name in ARRAYS]


def _header(num_rows: int, length: int) -> bytes:
    """Of a .npy file; numpy keeps it of one size for any number of rows."""
    found = io.BytesIO()
    kind = {"descr": np.dtype(np.int32).str, "fortran_order": False, "shape": (num_rows, length)}
    np.lib.format.write_array_header_1_0(found, kind)
    return found.getvalue()


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid4().hex[:8]}{STAGING}")


def _discard(folder: Path) -> None:
    """Remove a damaged folder, out of the way at once: nobody shall see half of it."""
    aside = _beside(folder)
    with suppress(FileNotFoundError):  # another process has done it
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(cache: Path) -> None:
    """Remove staging folders of processes that were killed; living ones write all the time."""
    for left in cache.glob(f".*{STAGING}"):
        with suppress(OSError):  # gone meanwhile
            newest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
            if time.time() - newest > STALE:
                shutil.rmtree(left, ignore_errors=True)
