"""Text and probe items as rows of tokens, with the positions that are looked at (torch side).

Rows are padded on the right without a mask: in a causal model no position sees what follows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from hybridize.diagnostics.subject.items import Item, ItemSet
from hybridize.torch_model.windows import Reader, Windows

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
        start: number of tokens before the text of each row.
        is_text: whether the loss over all of its tokens is asked for, too.
    """

    tokens: Tensor
    lengths: Tensor
    rows: Tensor
    columns: Tensor
    points: int | None
    members: Tensor
    perturbed: bool
    start: int = 0
    is_text: bool = False


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
    read = [*reader.start, *ids[:same]]
    if same == len(ids) or not read or (reader.longest and len(read) > reader.longest):
        return None
    return Question(read, ids[same])


def task_sheets(
    reader: Reader, items: ItemSet, index: int, *, perturbed: bool
) -> tuple[Points, list[Sheet]]:
    """Rows of a probe set: of those items that the tokenizer can read."""
    asked = (ask(reader, item) for item in items.items)
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
    return Points(items.name, "task", torch.arange(len(questions)), targets), sheets


def share_of(tokens: int | None, part: Windows, windows: Sequence[Windows]) -> int | None:
    """What falls to a domain of the tokens that are perturbed in all; None: all there are."""
    whole = sum(each.domain.tokens for each in windows)
    return None if tokens is None else math.ceil(tokens * part.domain.tokens / whole)


def text_sheets(
    reader: Reader, part: Windows, index: int, *, perturbed: int | None = None
) -> tuple[Points, list[Sheet]]:
    """Held-out text of a domain, scored.

    Args:
        perturbed: tokens of it that run through perturbed layers, in whole stretches, two at least;
            None: all.
    """
    sheets: list[Sheet] = []
    units: list[Tensor] = []
    targets: list[Tensor] = []
    done = num_rows = 0
    first = max(1, len(reader.start))  # of text, the token that all others have as context
    for rows, here in _perturbed_first(reader, part, perturbed):
        lengths = torch.tensor([len(row) for row in rows])
        # The last token of a row has nothing behind it; a single one predicts nothing.
        places = [_spread(min(first, len(row) - 2), len(row) - 2, SCORED) for row in rows]
        at, columns = _where(places)
        tokens = _padded(rows)
        members = torch.arange(done, done + len(at))
        start = len(reader.start)
        sheets.append(Sheet(tokens, lengths, at, columns, index, members, here, start, True))
        targets.append(tokens[at, columns + 1])
        units.append(at + num_rows)
        num_rows += len(rows)
        done += len(at)
    # Rows of a single token have no points, and are no units.
    _, numbered = torch.unique(torch.cat(units), return_inverse=True)
    return Points(part.domain.name, "text", numbered, torch.cat(targets)), sheets


def lens_sheets(
    reader: Reader, parts: Sequence[Windows], *, num_tokens: int = LENS_TOKENS
) -> list[Sheet]:
    """Text that lenses are fitted to, no part of it scored: stretches of all domains in turn.

    Without the first token of a stretch: there most models have one and the same state, a huge one.
    """
    turns = [t for some in zip_longest(*(p.fit for p in parts)) for t in some if t is not None]
    first = max(1, len(reader.start))
    rows = [row for some in _text_rows(reader, turns) for row in some if len(row) > first]
    each = -(-num_tokens // max(1, len(rows)))
    sheets = []
    for some in _batches(range(len(rows)), [len(row) for row in rows]):
        places = [_spread(first, len(rows[i]) - 1, each) for i in some]
        at, columns = _where(places)
        sizes = torch.tensor([len(rows[i]) for i in some])
        tokens = _padded([rows[i] for i in some])
        sheets.append(Sheet(tokens, sizes, at, columns, None, at, perturbed=False))
    return sheets


def _perturbed_first(
    reader: Reader, part: Windows, perturbed: int | None
) -> Iterator[tuple[list[list[int]], bool]]:
    """Rows that run together, and whether perturbed layers see them: stretches from everywhere."""
    texts = part.held_out
    wanted = len(texts) if perturbed is None else max(2, -(-perturbed // part.length))
    chosen = set(_spread(0, len(texts) - 1, wanted))
    for here in (True, False):
        some = [text for i, text in enumerate(texts) if (i in chosen) == here]
        for rows in _text_rows(reader, some) if some else ():
            yield rows, here


def _text_rows(reader: Reader, texts: Sequence[str]) -> Iterator[list[list[int]]]:
    """Tokens of texts, as many at a time as run together."""
    read = reader.encode(texts)
    rows = [row[: len(ends)] for row, ends in zip(read.tokens.tolist(), read.ends, strict=True)]
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


def _where(places: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows and columns of positions, which stand row by row."""
    pairs = [(row, column) for row, columns in enumerate(places) for column in columns]
    rows, columns = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return rows, columns


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([row[-1]] * (longest - len(row)))] for row in rows])


def _spread(first: int, last: int, most: int) -> list[int]:
    """At most so many whole numbers from `first` to `last`, evenly spread."""
    count = min(most, last - first + 1)
    if last < 0 or count <= 1:
        return [last] if last >= 0 else []
    return [first + round(i * (last - first) / (count - 1)) for i in range(count)]
