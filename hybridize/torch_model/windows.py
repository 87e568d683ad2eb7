"""Calibration text in stretches that every donor reads with its own tokenizer (torch side).

All models see the same text. Where their tokens differ, two positions belong together if their
tokens end at the same place of the text.
"""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridize.errors import Finding, HybridizeError
from hybridize.torch_model.tokenization import open_tokenizer

AUTO, NONE, BOS = "auto", "none", "bos"  # what a recipe may say of a start token
SAMPLE = "text"
PIECE = 1 << 16  # characters that are tokenized at a time


@dataclass(frozen=True)
class DomainText:
    """What the recipe says of one kind of text.

    Attributes:
        tokens: its share of the budget, counted by the hybrid's own tokenizer.
        place: in the recipe, for errors.
    """

    name: str
    tokens: int
    place: str


@dataclass(frozen=True)
class Windows:
    """Stretches of text of one domain: those that fits see, and those that judge them."""

    domain: DomainText
    fit: tuple[str, ...]
    held_out: tuple[str, ...]

    length: int  # tokens of a stretch

    def rows(self, num_tokens: int) -> int:
        """Stretches that make a batch of so many tokens."""
        return max(1, num_tokens // self.length)

    def judged_by(self, num_tokens: int) -> Windows:
        """The same with less held-out text: stretches of so many tokens, one at least."""
        return replace(self, held_out=self.held_out[: max(1, num_tokens // self.length)])

    @property
    def held_out_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.held_out)


@dataclass(frozen=True)
class Stretch:
    """A part of a document, and how many of the hybrid's tokens it has."""

    text: str
    num_tokens: int


@dataclass(frozen=True)
class Encoded:
    """A batch as one model reads it.

    Attributes:
        tokens: (batch, tokens), padded on the right.
        mask: (batch, tokens), or None where nothing is padded.
        ends: for each row, where each token ends in the text, in characters.
        start: number of tokens that stand before the text of each row.

    A row's first token of text is context, and not predicted, whatever stands before it: losses of
    models with a start token and without one are of the same text.
    """

    tokens: Tensor
    mask: Tensor | None
    ends: list[list[int]]
    start: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that a model predicts: those of text, but for the first of each row."""
        return sum(max(0, len(row) - 1 - self.start) for row in self.ends)

    def num_bytes(self, texts: Sequence[str]) -> int:
        """Bytes of text, in UTF-8, that a model predicts; `texts`: those that were encoded."""
        firsts = (row[self.start] if len(row) > self.start else 0 for row in self.ends)
        return sum(len(t[end:].encode()) for t, end in zip(texts, firsts, strict=True))


class Reader:
    """A donor's tokenizer, and what stands before each text.

    Args:
        name: of the donor, for errors.
        rows: of the embedding that the tokens are for.
        longest: tokens that the donor can read at a time, if it says so.
        start_token: `auto`, what the tokenizer puts there itself; `none`; `bos`; or a token.

    Attributes:
        start: ids that stand before each text.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        rows: int,
        longest: int | None = None,
        device: str = "cpu",
        start_token: str = AUTO,
    ) -> None:
        self.name, self.rows, self.longest, self.device = name, rows, longest, device
        self.tokenizer = open_tokenizer(folder, name)
        if not self.tokenizer.is_fast:
            raise HybridizeError(
                f"the tokenizer of donor '{name}' does not say where its tokens end",
                fix="save it as a fast tokenizer (tokenizer.json) into the donor's folder",
                place=str(folder),
            )
        self.start = self._start(start_token, folder)

    @property
    def start_words(self) -> str:
        """What stands before each text, for the eye."""
        return " ".join(self.tokenizer.convert_ids_to_tokens(self.start)) or NONE

    def _start(self, asked: str, folder: Path) -> list[int]:
        if asked == NONE:
            return []
        if asked == AUTO:
            return added_before(self.tokenizer)
        token = self.tokenizer.bos_token if asked == BOS else asked
        number = self.tokenizer.get_vocab().get(token)
        if number is None:
            what = "no BOS token" if asked == BOS else f"no token '{asked}'"
            raise HybridizeError(
                f"the tokenizer of '{self.name}' has {what} to put before text",
                fix="write start_token: auto, none, or a token of its vocabulary",
                place=str(folder),
            )
        return [number]

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokens of texts, each row on its own."""
        rows, ends = [], []
        for text in texts:
            ids, offsets = self.tokens(text)
            rows.append([*self.start, *ids])
            ends.append([0] * len(self.start) + [end for _, end in offsets])
        longest = max(map(len, rows))
        if self.longest is not None and longest > self.longest:
            raise HybridizeError(
                f"a sequence has {longest} tokens of donor '{self.name}', which reads "
                f"{self.longest} at most: its tokenizer makes more of the same text",
                fix="write a shorter length",
            )
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        if int(tokens.max()) >= self.rows:
            raise HybridizeError(
                f"the tokenizer of donor '{self.name}' gives token {int(tokens.max())}, its "
                f"embedding has {self.rows} rows",
                fix="put the donor's own tokenizer files into its folder",
            )
        padded = not bool(mask.all())
        return Encoded(
            tokens.to(self.device),
            mask.to(self.device) if padded else None,
            ends,
            len(self.start),
        )

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and where each token begins and ends in the text."""
        found = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return found["input_ids"], found["offset_mapping"]


def added_before(tokenizer: Any) -> list[int]:
    """Ids that a tokenizer puts before a text when it encodes one."""
    plain = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(SAMPLE)["input_ids"]
    last = len(whole) - len(plain)
    at = next((i for i in range(last + 1) if whole[i : i + len(plain)] == plain), 0)
    return list(whole[:at])


def align(one: Encoded, other: Encoded) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Positions of two readings of the same texts that end at the same place.

    Where several tokens make one character, the last one of them ends it. The first position of a
    row belongs to another first position alone: most models have a huge state there.

    Returns:
        (rows, columns) in `one` and in `other`.
    """
    rows, here, there = [], [], []
    for row, (mine, theirs) in enumerate(zip(one.ends, other.ends, strict=True)):
        last = {end: column for column, end in enumerate(theirs)}
        for end, column in {end: column for column, end in enumerate(mine)}.items():
            if end in last and (column == 0) == (last[end] == 0):
                rows.append(row)
                here.append(column)
                there.append(last[end])
    index = torch.tensor(rows, dtype=torch.long)
    return (index, torch.tensor(here)), (index, torch.tensor(there))


def batches(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """So many texts at a time; memory that a batch has freed goes back to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # of glibc
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
        trim(0)  # else batches of many lengths leave holes, and memory seems to grow with the text


def cut(
    documents: Path,
    domains: Sequence[DomainText],
    reader: Reader,
    *,
    length: int,
    held_out: float,
    seed: int = 0,
) -> list[Windows]:
    """Cut documents into stretches of about `length` tokens, and take as many as the budgets ask.

    They are taken from all documents in turn, at random within each: states within a document are
    alike, so that a few long ones would say little about others. Held out are whole documents,
    where a domain has more than one.

    Args:
        documents: JSON lines with the number of a domain and a text.
        reader: the hybrid's tokenizer.
        held_out: share of the tokens.
        seed: of the choice.

    Raises:
        HybridizeError: a domain has less text than its budget, for each such domain.
    """
    found: list[list[list[Stretch]]] = [[] for _ in domains]
    for domain, text in _documents(documents):
        stretches = list(_stretches(text, reader, length))
        random.Random(seed).shuffle(stretches)
        found[domain].append(stretches)
    taken = [_take(parts, domain.tokens) for parts, domain in zip(found, domains, strict=True)]
    findings = [
        Finding(
            f"the text of '{domain.name}' is shorter than needed: {_count(parts)} tokens for "
            f"{domain.tokens}",
            fix="name more text, or write fewer tokens",
            place=domain.place,
        )
        for domain, parts in zip(domains, taken, strict=True)
        if _count(parts) < domain.tokens or sum(map(len, parts)) < 2
    ]
    if findings:
        raise HybridizeError.of(findings)
    return [
        _split(domain, parts, length=length, held_out=held_out)
        for domain, parts in zip(domains, taken, strict=True)
    ]


def _take(documents: list[list[Stretch]], budget: int) -> list[list[Stretch]]:
    """Stretches of the documents in turn, until there are enough tokens, and one to hold out."""
    taken: list[list[Stretch]] = [[] for _ in documents]
    for turn in range(max(map(len, documents), default=0)):
        for document, chosen in zip(documents, taken, strict=True):
            enough = budget <= 0 and sum(map(len, taken)) > 1
            if not enough and turn < len(document):
                chosen.append(document[turn])
                budget -= document[turn].num_tokens
    return [chosen for chosen in taken if chosen]


def _count(documents: list[list[Stretch]]) -> int:
    return sum(stretch.num_tokens for document in documents for stretch in document)


def _documents(file: Path) -> Iterator[tuple[int, str]]:
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            document = json.loads(line)
            yield document["domain"], document["text"]


def _stretches(document: str, reader: Reader, length: int) -> Iterator[Stretch]:
    """Parts of a text that end where a token does."""
    for text in _pieces(document):
        _, offsets = reader.tokens(text)
        begin = 0
        # One token less even without a start token: cut apart, a text may have one more.
        step = max(1, length - max(1, len(reader.start)))
        for start in range(0, len(offsets), step):
            part = offsets[start : start + step]
            end = part[-1][1]
            if text[begin:end].strip():
                yield Stretch(text[begin:end], len(part))
                begin = end


def _pieces(text: str) -> Iterator[str]:
    """A long document in pieces: where a million tokens begin and end fills a lot of memory."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        if end < len(text):
            end = max(text.rfind("\n", begin, end), text.rfind(" ", begin, end), begin) + 1
            end = end if end > begin + 1 else begin + PIECE
        yield text[begin:end]
        begin = end


def _split(
    domain: DomainText, documents: list[list[Stretch]], *, length: int, held_out: float
) -> Windows:
    """Whole documents are held out, from the last one; of a single document its last stretches."""
    parts = documents if len(documents) > 1 else [[stretch] for stretch in documents[0]]
    at, missing = len(parts), held_out * _count(parts)
    while at > 1 and missing > 0:
        at -= 1
        missing -= _count(parts[at : at + 1])
    fit, judge = (tuple(s.text for part in half for s in part) for half in (parts[:at], parts[at:]))
    return Windows(domain, fit, judge, length)
