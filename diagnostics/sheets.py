"""Text and probe items as rows of tokens, with the positions that are looked at (torch side).

Rows are padded on the right without a mask: in a causal model no position sees what follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridize.assembler.windows import Reader, Windows
from hybridize.diagnostics.items import Item, ItemSet

SCORED = 16  # positions of a stretch of text that are scored, spread over it
LENS_TOKENS = 2048  # that a lens is fitted to
BATCH = 2048  # tokens that run at a time


@dataclass(frozen=True)
class Points:
    """Positions at which a model says what comes next, and what does come.

    Attributes:
        units: what is drawn anew for an interval: a stretch of text, or an item; (N,).
    """

    name: str
    kind: str  # text or task
    units: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Sheet:
    """Rows that run together.

    Attributes:
        tokens: (rows, tokens).
        lengths: (rows,), of the real tokens.
        rows, columns: where its positions lie, (N,).
        points: index of the points that its positions belong to; None: a lens is fitted to them.
        members: which of those points, (N,).
        perturbed: whether its rows run through perturbed layers, too.
    """

    tokens: Tensor
    lengths: Tensor
    rows: Tensor
    columns: Tensor
    points: int | None
    members: Tensor
    perturbed: bool


@dataclass(frozen=True)
class Question:
    """An item as tokens: what is read, and the token that decides."""

    tokens: list[int]
    target: int


def ask(reader: Reader, item: Item) -> Question | None:
    """An item in a tokenizer's words; None if it has none for some character.

    What decides is the first token in which the prompt alone and the prompt with the answer
    differ: where a token reaches over the end of the prompt, that token is asked for.
    """
    whole = item.prompt + item.answer
    ids, offsets = reader.tokens(whole)
    unknown = getattr(reader.tokenizer, "unk_token_id", None)
    covered = set().union(*(range(a, b) for a, b in offsets))
    lost = any(i not in covered and not char.isspace() for i, char in enumerate(whole))
    if lost or (unknown is not None and unknown in ids):
        return None
    alone, _ = reader.tokens(item.prompt)
    pairs = zip(alone, ids, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(alone), len(ids)))
    first = [] if reader.begin is None else [reader.begin]
    read = [*first, *ids[:same]]
    if same == len(ids) or not read or (reader.longest and len(read) > reader.longest):
        return None
    return Question(read, ids[same])


def task_sheets(
    reader: Reader, items: ItemSet, index: int, *, perturbed: bool
) -> tuple[Points, list[Sheet], list[int]]:
    """Rows of a probe set, and which of its items the tokenizer can read."""
    asked = [ask(reader, item) for item in items.items]
    readable = [i for i, question in enumerate(asked) if question is not None]
    questions = [question for question in asked if question is not None]
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].tokens))
    sheets = []
    for some in _batches(order, [len(q.tokens) for q in questions]):
        lengths = torch.tensor([len(questions[i].tokens) for i in some])
        tokens = _padded([questions[i].tokens for i in some])
        rows = torch.arange(len(some))
        sheets.append(
            Sheet(tokens, lengths, rows, lengths - 1, index, torch.tensor(some), perturbed)
        )
    targets = torch.tensor([q.target for q in questions], dtype=torch.long)
    return Points(items.name, "task", torch.arange(len(questions)), targets), sheets, readable


def text_sheets(reader: Reader, part: Windows, index: int) -> tuple[Points, list[Sheet]]:
    """Held-out text of a domain, perturbed and scored."""
    sheets: list[Sheet] = []
    units: list[Tensor] = []
    targets: list[Tensor] = []
    done = 0
    for rows in _text_rows(reader, part.held_out):
        lengths = torch.tensor([len(row) for row in rows])
        places = [_spread(min(1, len(row) - 2), len(row) - 2, SCORED) for row in rows]
        where = [(i, column) for i, columns in enumerate(places) for column in columns]
        at, columns = (torch.tensor(side) for side in zip(*where, strict=True))
        tokens = _padded(rows)
        members = torch.arange(done, done + len(at))
        sheets.append(Sheet(tokens, lengths, at, columns, index, members, perturbed=True))
        targets.append(tokens[at, columns + 1])
        units.append(at + (int(units[-1].max()) + 1 if units else 0))
        done += len(at)
    points = Points(part.domain.name, "text", torch.cat(units), torch.cat(targets))
    return points, sheets


def lens_sheets(reader: Reader, parts: Sequence[Windows]) -> list[Sheet]:
    """Text that lenses are fitted to, no part of it scored: stretches of all domains in turn."""
    turns = [text for some in zip(*(part.fit for part in parts), strict=False) for text in some]
    lengths = [len(row) for rows in _text_rows(reader, turns) for row in rows]
    each = max(1, -(-LENS_TOKENS // max(1, len(lengths))))
    sheets = []
    for rows in _text_rows(reader, turns):
        places = [_spread(0, len(row) - 1, each) for row in rows]
        where = [(i, column) for i, columns in enumerate(places) for column in columns]
        at, columns = (torch.tensor(side) for side in zip(*where, strict=True))
        sizes = torch.tensor([len(row) for row in rows])
        sheets.append(Sheet(_padded(rows), sizes, at, columns, None, at, perturbed=False))
    return sheets


def _text_rows(reader: Reader, texts: Sequence[str]) -> Iterator[list[list[int]]]:
    """Tokens of texts, some at a time, without those of a single one, which predicts nothing."""
    read = reader.encode(texts)
    rows = [row[: len(ends)] for row, ends in zip(read.tokens.tolist(), read.ends, strict=True)]
    rows = [row for row in rows if len(row) > 1]
    for some in _batches(range(len(rows)), [len(row) for row in rows]):
        yield [rows[i] for i in some]


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows that run together, in this order: padded, they are no more than BATCH tokens."""
    some: list[int] = []
    for i in order:
        longest = max(lengths[j] for j in (*some, i))
        if some and longest * (len(some) + 1) > BATCH:
            yield some
            some = []
        some.append(i)
    if some:
        yield some


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([row[-1]] * (longest - len(row)))] for row in rows])


def _spread(first: int, last: int, most: int) -> list[int]:
    """At most so many whole numbers from `first` to `last`, evenly spread."""
    count = min(most, last - first + 1)
    if count <= 1:
        return [last]
    return [first + round(i * (last - first) / (count - 1)) for i in range(count)]
