"""Text in one pass: documents to train on, and those held out, become rows (torch side)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from blake3 import blake3

from hybridize.cpt.data.blocks import Document
from hybridize.cpt.data.packing import HELD_OUT, TRAIN, Growing
from hybridize.cpt.data.tokens import LONG, Tokens

EACH = 20  # one document in so many is held out
MOST_HELD_OUT = 65_536  # tokens of a source that the losses before and after are measured on
BATCH = 1 << 20  # characters that are tokenized at a time


@dataclass(frozen=True)
class Part:
    """A document, or one end of it.

    Attributes:
        document: its number, from 0.
    """

    document: int
    text: str
    held_out: bool


class Division:
    """Text on its way to rows: read once, tokenized once, and no more of it than is asked for.

    One document in twenty is held out; of fewer than twenty, the last twentieth of each.

    Args:
        folder: where two folders of rows are made.
        length: tokens of a row.
        packed: whether a row may hold more than one document.
        wanted: tokens to train on; the document that reaches them is the last, and stays whole
            unless it is a long one. What is held out is cut at MOST_HELD_OUT.
        tell: is called with the tokens to train on so far.
    """

    def __init__(
        self,
        folder: Path,
        tokens: Tokens,
        *,
        length: int,
        packed: bool,
        wanted: int,
        tell: Callable[[int], None],
    ) -> None:
        self.tokens, self.length, self.tell = tokens, length, tell
        self.train = Growing(folder / TRAIN, length, packed=packed)
        self.held_out = Growing(folder / HELD_OUT, length, packed=packed)
        self.wanted = max(1, wanted)  # old text that is not replayed is measured all the same
        self._num_documents, self._last = 0, -1
        self._hash = blake3()

    def run(self, texts: Iterator[str]) -> dict[str, Any]:
        """Pack as much of some text as is wanted.

        Returns:
            what to note: number of documents taken, the hash of their text (a null byte behind
            each, and behind each end of one that was parted), and of both kinds of rows the number,
            the tokens that they predict, and their hash.
        """
        with self.train, self.held_out:
            for batch in self._batches(_parts(texts)):
                self._pack(batch)
                self.tell(self.train.num_targets)
                if self._is_enough():
                    break
            return {
                "length": self.length,
                "documents": self._num_documents,
                "blake3": self._hash.hexdigest(),
                TRAIN: self.train.finish(),
                HELD_OUT: self.held_out.finish(),
            }

    def _batches(self, parts: Iterator[Part]) -> Iterator[list[Part]]:
        """Parts that are wanted, as many as are tokenized at a time; a long one alone."""
        batch: list[Part] = []
        num_characters = 0
        for part in parts:
            if batch and len(part.text) > LONG:
                yield batch
                batch, num_characters = [], 0
            if self._left(part) > 0:
                batch.append(part)
                num_characters += len(part.text)
            if num_characters >= BATCH:
                yield batch
                batch, num_characters = [], 0
        if batch:
            yield batch

    def _pack(self, batch: Sequence[Part]) -> None:
        if len(batch[0].text) > LONG:
            documents = [self.tokens.of_long(batch[0].text, self._left(batch[0]))]
        else:
            documents = self.tokens.of([part.text for part in batch])
        for part, document in zip(batch, documents, strict=True):
            if self._left(part) > 0 and not self._is_enough():
                self._take(part, document)

    def _take(self, part: Part, document: Document) -> None:
        if part.held_out:
            self.held_out.add(Document(document.tokens[: self._left(part) + 1]))
        else:
            self.train.add(document)
        self._num_documents += part.document != self._last
        self._last = part.document
        self._hash.update(part.text.encode())
        self._hash.update(b"\0")

    def _left(self, part: Part) -> int:
        """Tokens that are still wanted of its kind."""
        if part.held_out:
            return MOST_HELD_OUT - self.held_out.num_targets
        return self.wanted - self.train.num_targets

    def _is_enough(self) -> bool:
        return self.train.num_targets >= self.wanted and self.held_out.num_targets > 0


def _parts(texts: Iterator[str]) -> Iterator[Part]:
    first = list(islice(texts, EACH))
    if len(first) == EACH:
        for number, text in enumerate(chain(first, texts)):
            yield Part(number, text, held_out=number % EACH == EACH - 1)
        return
    for number, text in enumerate(first):
        cut = len(text) - len(text) // EACH
        yield Part(number, text[:cut], held_out=False)
        if text[cut:]:
            yield Part(number, text[cut:], held_out=True)
