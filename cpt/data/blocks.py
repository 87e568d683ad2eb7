"""Documents to rows of tokens, kept in memory-mapped files: nothing is dropped or overwritten.

A packed row holds several documents. Positions start anew with each of them, which is how
transformers' attention tells them apart; where a model cannot, each row holds one document.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

IGNORED = -100  # label of what is not to be predicted
FORMAT = 1

Array = NDArray[np.int32]


@dataclass(frozen=True)
class Document:
    """Tokens of one document, begin and end among them."""

    tokens: Sequence[int]


@dataclass(frozen=True)
class Blocks:
    """Rows of one source; each array is (rows, length), int32.

    Attributes:
        tokens: padded on the right with the last token of the row.
        labels: the tokens themselves, or IGNORED where nothing is to be predicted: at a document's
            first token, at one that the row before has predicted, and in the padding.
        positions: of each token in its document, as far as it stands in this row.
    """

    tokens: Array
    labels: Array
    positions: Array

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def targets(self) -> NDArray[np.int64]:
        """Tokens that are predicted in each row."""
        found: NDArray[np.int64] = (self.labels[:, 1:] != IGNORED).sum(1)
        return found

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted."""
        return int(self.targets.sum())


def pack(documents: Iterable[Document], length: int, *, packed: bool) -> Blocks:
    """Rows of documents, in their order.

    Every token but the first of a document is predicted exactly once: where a document goes on in
    the next row, that row begins with the last token of this one.

    Args:
        length: tokens of a row, at least 2.
        packed: whether a row may hold more than one document.
    """
    rows = list(_rows(documents, length, packed=packed))
    shape = (len(rows), length)
    tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    labels = np.full(shape, IGNORED, np.int32)
    for row, pieces in enumerate(rows):
        at = 0
        for piece in pieces:
            stop = at + len(piece)
            tokens[row, at:stop] = piece
            labels[row, at + 1 : stop] = piece[1:]
            positions[row, at:stop] = range(len(piece))
            at = stop
        tokens[row, at:] = tokens[row, at - 1]
        # Between packed documents, the padding is one of its own; behind a single one it goes on.
        positions[row, at:] = range(length - at) if packed else range(at, length)
    return Blocks(tokens, labels, positions)


def _rows(
    documents: Iterable[Document], length: int, *, packed: bool
) -> Iterator[list[Sequence[int]]]:
    """Pieces of documents, as many as fit into a row."""
    row: list[Sequence[int]] = []
    for document in documents:
        left = document.tokens
        while len(left) > 1:
            room = length - sum(map(len, row))
            if room < 2 or (row and not packed):
                yield row
                row, room = [], length
            row.append(left[:room])
            left = left[room - 1 :] if len(left) > room else []
    if row:
        yield row


def save(blocks: Blocks, folder: Path, key: str) -> None:
    """Write rows under a folder that appears whole, with the key that they were made from."""
    staged = folder.with_name(f".{folder.name}.{os.getpid()}")
    staged.mkdir(parents=True)
    for name in ("tokens", "labels", "positions"):
        np.save(staged / f"{name}.npy", getattr(blocks, name))
    (staged / "blocks.json").write_text(json.dumps({"format": FORMAT, "key": key}))
    staged.rename(folder)


def load(folder: Path, key: str) -> Blocks | None:
    """Rows that were saved under this key, mapped into memory; None: there are none."""
    note = folder / "blocks.json"
    if not note.is_file() or json.loads(note.read_text()) != {"format": FORMAT, "key": key}:
        return None
    arrays = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "labels", "positions")
    )
    return Blocks(*arrays)


def digest(blocks: Blocks) -> str:
    """BLAKE3 of all rows."""
    found = blake3()
    for array in (blocks.tokens, blocks.labels, blocks.positions):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def mixture(
    sizes: Sequence[int], shares: Sequence[float], num_rows: int, *, seed: int
) -> list[tuple[int, int]]:
    """Which row of which source comes when: (source, row), for all of a training.

    After any number of rows each source has had its share, within one row. Each is gone through in
    an order of its own, anew each time that all its rows have come.

    Args:
        sizes: rows of each source.
        shares: of each source; they add up to 1.
    """
    random = np.random.default_rng(seed)
    orders: list[list[int]] = [[] for _ in sizes]
    taken = [0] * len(sizes)
    found = []
    for i in range(num_rows):
        behind = [share * (i + 1) - n for share, n in zip(shares, taken, strict=True)]
        source = max(range(len(sizes)), key=behind.__getitem__)
        if not orders[source]:
            orders[source] = random.permutation(sizes[source]).tolist()
        found.append((source, orders[source].pop()))
        taken[source] += 1
    return found
