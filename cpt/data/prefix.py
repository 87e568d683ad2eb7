"""What arrives at the first part that learns, kept on disk: a frozen prefix runs once (torch side).

Rows go through it in blocks whose make-up depends on the order of the training and on how many run
at once, so that a training that is broken off and goes on reads the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from hybridize.cpt.backends import processes
from hybridize.files.staging import check_disk
from hybridize.machine import ranks

Below = Callable[[NDArray[np.int64]], Tensor]  # rows (n, 2) -> (n, tokens, width)
MARK = 8  # bytes of a block's hash, zeros until it is there


class Prefix:
    """States of the rows of a training, in a file that is mapped into memory.

    Args:
        order: (rows, 2), source and row of it; each is kept once.
    """

    def __init__(self, file: Path, order: NDArray[np.int64]) -> None:
        self.file = file
        self.rows = np.unique(order, axis=0)
        self._index = {(int(s), int(r)): i for i, (s, r) in enumerate(self.rows)}
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32
        self._bytes: np.memmap[tuple[int, int], np.dtype[np.uint8]] | None = None

    def __getitem__(self, row: tuple[int, int]) -> Tensor:
        """(tokens, width) of one row."""
        assert self._bytes is not None
        copy = torch.from_numpy(np.array(self._bytes[self._index[row]]))
        return copy.view(self._dtype).reshape(self._shape)

    def fill(self, below: Below, size: int, tell: Callable[[int, int], None]) -> None:
        """Run what is not there yet; each process takes its share of the blocks.

        Args:
            size: rows of a block.
            tell: called with rows that are there and all of them.

        Raises:
            HybridizeError: the disk is too small.
        """
        first = below(self.rows[:1])
        self._shape, self._dtype = tuple(first.shape[1:]), first.dtype
        width = first[0].numel() * first.element_size()
        blocks = -(-len(self.rows) // size)
        marks = self._open(width, blocks)
        assert self._bytes is not None
        for block in range(ranks.rank(), blocks, ranks.processes()):
            part = slice(block * size, (block + 1) * size)
            if not marks[block].any() or not _is(self._bytes[part], marks[block]):
                states = below(self.rows[part]).cpu().contiguous()
                self._bytes[part] = states.view(len(states), -1).view(torch.uint8).numpy()
                marks[block] = _mark(self._bytes[part])
            tell(min(len(self.rows), part.stop), len(self.rows))
        processes.barrier()

    def _open(self, width: int, blocks: int) -> np.memmap[tuple[int, int], np.dtype[np.uint8]]:
        sizes = ((self.file, (len(self.rows), width)), (self._marks, (blocks, MARK)))

        def make_room() -> None:
            there = 512 * self.file.stat().st_blocks if self.file.is_file() else 0
            nbytes = max(0, len(self.rows) * width - there)
            check_disk(self.file.parent, nbytes, fix="write cache_prefix: false under cpt")
            for file, shape in sizes:
                with file.open("ab") as growing:
                    # Room that is only promised would end a full disk's writer by SIGBUS.
                    os.posix_fallocate(growing.fileno(), 0, shape[0] * shape[1])

        processes.by_main(make_room)
        self._bytes, marks = (np.memmap(f, np.uint8, "r+", shape=shape) for f, shape in sizes)
        return marks

    @property
    def _marks(self) -> Path:
        return self.file.with_suffix(".marks")

    def remove(self) -> None:
        """The files go; what was read of them stays."""
        self._bytes = None
        for file in (self.file, self._marks):
            file.unlink(missing_ok=True)


def _mark(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.frombuffer(blake3(np.ascontiguousarray(block).tobytes()).digest(MARK), np.uint8)


def _is(block: NDArray[np.uint8], mark: NDArray[np.uint8]) -> bool:
    return bool((_mark(block) == mark).all())
