"""Hashes of donors' files, remembered between runs: no plan should read 30 GB. No torch."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from hybridize.files.publishing import publish
from hybridize.files.ranges import Range, hash_ranges

SMALL = 1 << 20  # bytes; such a file is hashed as quickly as its note is read
RACY = 2.0  # seconds; a file that is younger may change again without a new time of change


def cache_folder() -> Path:
    """`$HYBRIDIZE_CACHE`, or `~/.cache/hybridize`."""
    return Path(os.environ.get("HYBRIDIZE_CACHE") or "~/.cache/hybridize").expanduser()


def file_hash(path: Path) -> str:
    """BLAKE3 of a file's content.

    It is remembered for as long as path, inode, size and times of the file stay what they were.
    """
    real = path.resolve()
    if real.stat().st_size < SMALL:
        return content_hash(real)
    note = cache_folder() / "hashes" / f"{blake3(os.fsencode(real)).hexdigest()[:32]}.json"
    before = _state(real)
    remembered = _read(note)
    if remembered is not None and remembered["state"] == before:
        return str(remembered["blake3"])
    digest = content_hash(real)
    if _state(real) == before and time.time() - before["changed_ns"] / 1e9 > RACY:
        with suppress(OSError):  # a cache that cannot be written costs time and nothing else
            _write(note, {"state": before, "blake3": digest})
    return digest


def content_hash(path: Path) -> str:
    """BLAKE3 of a file's content, read now, whatever is remembered."""
    nbytes = path.stat().st_size
    if nbytes < SMALL:
        return blake3(path.read_bytes()).hexdigest()
    return hash_ranges([Range(path, 0, nbytes, "U8", path.name)])


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {
        "inode": found.st_ino,
        "size": found.st_size,
        "modified_ns": found.st_mtime_ns,
        "changed_ns": found.st_ctime_ns,  # unlike the former, no program can set it back
    }


def _read(note: Path) -> dict[str, object] | None:
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"state", "blake3"} <= found.keys() else None


def _write(note: Path, content: dict[str, object]) -> None:
    publish(note, json.dumps(content))
