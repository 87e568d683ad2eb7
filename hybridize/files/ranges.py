"""Stretches of bytes in files, and their hashes. No torch, and no more memory than a buffer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from hybridize.console import Advance
from hybridize.errors import HybridizeError

BUFFER = 1 << 18  # bytes; larger ones were at times three times slower: benchmarks/RESULTS.md


@dataclass(frozen=True)
class Range:
    """Bytes of a donor's file."""

    file: Path
    start: int
    nbytes: int
    dtype: str
    tensor: str  # the donor's tensor that they belong to, for errors


def hash_ranges(ranges: Iterable[Range], progress: Advance = lambda _: None) -> str:
    """BLAKE3 of bytes on disk, the ranges one after another."""
    digest = blake3()
    for source in ranges:
        with source.file.open("rb", buffering=0) as stream:
            stream.seek(source.start)
            left = source.nbytes
            while left and (data := stream.read(min(BUFFER, left))):
                digest.update(data)
                progress(len(data))
                left -= len(data)
            if left:
                raise HybridizeError(
                    f"truncated: tensor '{source.tensor}' ends early", place=str(source.file)
                )
    return digest.hexdigest()
