"""Bytes from file to file, hashed on the way. No torch, and no more memory than a buffer."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from hybridize.console import Advance
from hybridize.errors import HybridizeError
from hybridize.files.ranges import BUFFER
from hybridize.model.shards import Output, Shard

THREADS = 2  # one hashes while the other writes; a file takes one writer at a time


def copy_outputs(shard: Shard, file: Path, progress: Advance) -> dict[str, str]:
    """Write the header of a shard and every output that is a plain copy.

    The file has its final size from the start; outputs that must be computed are left as holes.

    Returns:
        BLAKE3 hash of each tensor copied, by name.

    Raises:
        HybridizeError: a donor's file is shorter than its header said.
        OSError: the disk is full, or whatever else the system says.
    """
    header = shard.header()
    copied = [(output, offset) for output, offset in shard.placed() if output.copied]
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.pwrite(target, header, 0)
        os.truncate(target, shard.nbytes)
        with _Sources() as sources, ThreadPoolExecutor(THREADS) as pool:
            # Largest first: at the end no thread stands idle beside a large one.
            jobs = {
                output.name: pool.submit(_copy, output, target, offset, sources, progress)
                for output, offset in sorted(copied, key=lambda pair: -pair[0].nbytes)
            }
            try:
                return {output.name: jobs[output.name].result() for output, _ in copied}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        os.close(target)


def _copy(output: Output, target: int, offset: int, sources: _Sources, progress: Advance) -> str:
    digest = blake3()
    buffer = sources.buffer()
    for source in output.ranges:
        descriptor = sources.open(source.file)
        done = 0
        while done < source.nbytes:
            part = buffer[: min(BUFFER, source.nbytes - done)]
            got = os.preadv(descriptor, [part], source.start + done)
            if got == 0:
                raise HybridizeError(
                    f"tensor '{source.tensor}' ends early: the file became shorter",
                    fix="copy the donor again",
                    place=str(source.file),
                )
            digest.update(part[:got])
            _write(target, part[:got], offset)
            done += got
            offset += got
            progress(got)
    return digest.hexdigest()


def _write(target: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(target, data, offset)
        data, offset = data[written:], offset + written


class _Sources:
    """Open files of donors, each once, and a buffer for each thread."""

    def __init__(self) -> None:
        self.open_files: dict[Path, int] = {}
        self.threads = threading.local()

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self.open_files.values():
            os.close(descriptor)

    def buffer(self) -> memoryview:
        if not hasattr(self.threads, "buffer"):
            self.threads.buffer = memoryview(bytearray(BUFFER))
        found: memoryview = self.threads.buffer
        return found

    def open(self, file: Path) -> int:
        descriptor = self.open_files.get(file)
        if descriptor is None:
            descriptor = os.open(file, os.O_RDONLY)
            # Two threads may come here at once: the loser's descriptor is closed again.
            kept = self.open_files.setdefault(file, descriptor)
            if kept != descriptor:
                os.close(descriptor)
            descriptor = kept
        return descriptor
