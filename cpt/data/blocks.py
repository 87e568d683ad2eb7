"""Documents to rows of tokens: nothing is dropped or overwritten.

A packed row holds several documents. Positions start anew with each of them, which is how
transformers' attention tells them apart; where a model cannot, each row holds one document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import sub

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

IGNORED = -100  # label of what is not to be predicted
CHUNK = 1 << 20  # tokens that are packed, counted or hashed at a time
TURNS = 1 << 16  # rows whose sources are chosen at a time

Array = NDArray[np.int32]


@dataclass(frozen=True)
class Document:
    """Tokens of one document, begin and end among them."""

    tokens: Sequence[int] | Array


@dataclass(frozen=True)
class Blocks:
    """Rows of one source; each array is (rows, length), int32, in memory or mapped from a file.

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
        found = [(part[:, 1:] != IGNORED).sum(1) for part in _chunks(self.labels)]
        return np.concatenate([np.zeros(0, np.int64), *found])

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted."""
        return int(self.targets.sum())


class Packer:
    """Documents into rows, in their order and as they come; a chunk of rows is in memory.

    Every token but the first of a document is predicted exactly once: where a document goes on in
    the next row, that row begins with the last token of this one.

    Args:
        length: tokens of a row, at least 2.
        packed: whether a row may hold more than one document.
        full: is given the rows, chunk by chunk, and may keep them.
        num_rows: of a chunk.
    """

    def __init__(
        self,
        length: int,
        *,
        packed: bool,
        full: Callable[[Blocks], None],
        num_rows: int | None = None,
    ) -> None:
        self.length, self.packed, self.full = length, packed, full
        self.num_rows = num_rows or _rows_of_a_chunk(length)
        self._numbers = np.arange(length, dtype=np.int32)
        self._begin_chunk()

    def add(self, document: Document) -> None:
        """Pack the next document; what does not fill a row waits for more."""
        left = np.asarray(document.tokens, np.int32)
        while len(left) > 1:
            room = self.length - self._at
            if room < 2 or (self._at and not self.packed):
                self._end_row()
                room = self.length
            self._place(left[:room])
            left = left[room - 1 :] if len(left) > room else left[:0]

    def finish(self) -> None:
        """Give what is left; nothing may come after it."""
        if self._at:
            self._end_row()
        self._end_chunk()

    def _begin_chunk(self) -> None:
        shape = (self.num_rows, self.length)
        tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self._chunk = Blocks(tokens, np.full(shape, IGNORED, np.int32), positions)
        self._row, self._at = 0, 0  # where the next token goes

    def _place(self, piece: Array) -> None:
        row, begin, end = self._row, self._at, self._at + len(piece)
        self._chunk.tokens[row, begin:end] = piece
        self._chunk.labels[row, begin + 1 : end] = piece[1:]
        self._chunk.positions[row, begin:end] = self._numbers[: len(piece)]
        self._at = end

    def _end_row(self) -> None:
        row, at = self._row, self._at
        self._chunk.tokens[row, at:] = self._chunk.tokens[row, at - 1]
        # Between packed documents, the padding is one of its own; behind a single one it goes on.
        padding = self._numbers[: self.length - at] if self.packed else self._numbers[at:]
        self._chunk.positions[row, at:] = padding
        self._row, self._at = row + 1, 0
        if self._row == self.num_rows:
            self._end_chunk()

    def _end_chunk(self) -> None:
        chunk, rows = self._chunk, self._row
        self.full(Blocks(chunk.tokens[:rows], chunk.labels[:rows], chunk.positions[:rows]))
        self._begin_chunk()


def pack(documents: Iterable[Document], length: int, *, packed: bool) -> Blocks:
    """Rows of documents, in memory; `Packer` says what they are like."""
    chunks: list[Blocks] = []
    packer = Packer(length, packed=packed, full=chunks.append)
    for document in documents:
        packer.add(document)
    packer.finish()
    return Blocks(
        np.concatenate([chunk.tokens for chunk in chunks]),
        np.concatenate([chunk.labels for chunk in chunks]),
        np.concatenate([chunk.positions for chunk in chunks]),
    )


def digest(blocks: Blocks) -> str:
    """BLAKE3 of all rows; arrays that are mapped from files are read a chunk at a time."""
    found = blake3()
    for array in (blocks.tokens, blocks.labels, blocks.positions):
        for part in _chunks(array):
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def mixture(
    sizes: Sequence[int], shares: Sequence[float], num_rows: int, *, seed: int
) -> NDArray[np.int64]:
    """Which row of which source comes when, for all of a training.

    After any number of rows each source has had its share, within one row. Each is gone through in
    an order of its own, anew each time that all its rows have come.

    Args:
        sizes: rows of each source.
        shares: of each source; they add up to 1.

    Returns:
        (rows, 2): source, and row of it.
    """
    found = np.zeros((num_rows, 2), np.int64)
    found[:, 0] = _turns(shares, num_rows)
    random = np.random.default_rng(seed)
    turns = [np.flatnonzero(found[:, 0] == source) for source in range(len(sizes))]
    rounds = [
        (int(first), source, start)
        for source, (when, size) in enumerate(zip(turns, sizes, strict=True))
        for start, first in zip(range(0, len(when), size), when[::size], strict=True)
    ]
    for _, source, start in sorted(rounds):  # one source of chance, drawn from as rounds begin
        when = turns[source][start : start + sizes[source]]
        found[when, 1] = random.permutation(sizes[source])[::-1][: len(when)]
    return found


def _turns(shares: Sequence[float], num_rows: int) -> NDArray[np.uint16]:
    """The source of each row: the one that is farthest behind its share, the first of several."""
    found = np.zeros(num_rows, np.uint16)
    taken = [0] * len(shares)
    for start in range(0, num_rows if len(shares) > 1 else 0, TURNS):
        turns = []
        stop = min(start + TURNS, num_rows)
        for due in np.outer(np.arange(start + 1, stop + 1), shares).tolist():
            behind = list(map(sub, due, taken))
            source = behind.index(max(behind))
            taken[source] += 1
            turns.append(source)
        found[start:stop] = turns
    return found


def _chunks(array: Array) -> Iterator[Array]:
    num_rows = _rows_of_a_chunk(array.shape[1])
    return (array[start : start + num_rows] for start in range(0, len(array), num_rows))


def _rows_of_a_chunk(length: int) -> int:
    return max(1, CHUNK // length)
