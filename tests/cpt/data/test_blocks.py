"""Packing loses no token, overwrites none, and predicts each but the first of a document once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.cpt.data import blocks as module
from hybridize.cpt.data.blocks import IGNORED, Blocks, Document, Packer, digest, mixture, pack

DOCUMENTS = st.lists(st.integers(0, 40), max_size=12)


def numbered(sizes: list[int]) -> list[Document]:
    """Documents in which every token is another one."""
    found, at = [], 0
    for size in sizes:
        found.append(Document(range(at, at + size)))
        at += size
    return found


@given(DOCUMENTS, st.integers(2, 17), st.booleans())
def test_every_token_but_a_documents_first_is_predicted_once(
    sizes: list[int], length: int, packed: bool
) -> None:
    documents = numbered(sizes)
    blocks = pack(documents, length, packed=packed)
    # What the loss of transformers looks at: the label of the next position.
    targets = [int(label) for label in blocks.labels[:, 1:].ravel() if label != IGNORED]
    wanted = [token for document in documents for token in document.tokens[1:]]
    assert targets == wanted
    assert blocks.num_targets == len(wanted)


@given(DOCUMENTS, st.integers(2, 17), st.booleans())
def test_each_target_stands_behind_its_own_predecessor(
    sizes: list[int], length: int, packed: bool
) -> None:
    blocks = pack(numbered(sizes), length, packed=packed)
    rows, columns = np.nonzero(blocks.labels != IGNORED)
    assert (columns > 0).all()
    assert (blocks.tokens[rows, columns] == blocks.labels[rows, columns]).all()
    assert (blocks.tokens[rows, columns - 1] == blocks.labels[rows, columns] - 1).all()
    assert (blocks.positions[rows, columns] == blocks.positions[rows, columns - 1] + 1).all()


@given(DOCUMENTS, st.integers(2, 17))
def test_a_row_that_is_not_packed_holds_one_document(sizes: list[int], length: int) -> None:
    documents = numbered(sizes)
    owner = {token: i for i, d in enumerate(documents) for token in d.tokens}
    blocks = pack(documents, length, packed=False)
    for tokens, labels in zip(blocks.tokens, blocks.labels, strict=True):
        real = [owner[int(t)] for t, label in zip(tokens, labels, strict=True) if label != IGNORED]
        assert len(set(real)) <= 1


def test_packing_fills_rows() -> None:
    blocks = pack(numbered([5, 3, 9]), 6, packed=True)
    assert blocks.tokens.tolist() == [
        [0, 1, 2, 3, 4, 4],
        [5, 6, 7, 8, 9, 10],
        [10, 11, 12, 13, 14, 15],
        [15, 16, 16, 16, 16, 16],
    ]
    assert blocks.positions.tolist()[1] == [0, 1, 2, 0, 1, 2]
    assert blocks.labels.tolist()[1] == [IGNORED, 6, 7, IGNORED, 9, 10]
    assert blocks.labels.tolist()[3] == [IGNORED, 16, *[IGNORED] * 4]


def rows_in_lists(
    documents: Sequence[Document], length: int, *, packed: bool
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Tokens, labels and positions of each row, by a way of its own: piece by piece, in lists."""
    rows: list[list[Sequence[int]]] = []
    for document in documents:
        left = list(document.tokens)
        while len(left) > 1:
            room = length - sum(map(len, rows[-1])) if rows else 0
            if room < 2 or not packed:
                rows.append([])
                room = length
            rows[-1].append(left[:room])
            left = left[room - 1 :] if len(left) > room else []
    for pieces in rows:
        tokens = [token for piece in pieces for token in piece]
        labels = [label for piece in pieces for label in (IGNORED, *piece[1:])]
        positions = [position for piece in pieces for position in range(len(piece))]
        padding = length - len(tokens)
        first = 0 if packed else len(tokens)
        yield (
            tokens + tokens[-1:] * padding,
            labels + [IGNORED] * padding,
            positions + list(range(first, first + padding)),
        )


@given(DOCUMENTS, st.integers(2, 17), st.booleans(), st.integers(1, 4))
def test_rows_are_the_same_whatever_the_chunks(
    sizes: list[int], length: int, packed: bool, num_rows: int
) -> None:
    """Text that does not fit into memory is packed a few rows at a time."""
    documents = numbered(sizes)
    chunks: list[Blocks] = []
    packer = Packer(length, packed=packed, full=chunks.append, num_rows=num_rows)
    for document in documents:
        packer.add(document)
    packer.finish()
    assert all(len(chunk) <= num_rows for chunk in chunks)
    rows = [
        (tokens.tolist(), labels.tolist(), positions.tolist())
        for chunk in chunks
        for tokens, labels, positions in zip(
            chunk.tokens, chunk.labels, chunk.positions, strict=True
        )
    ]
    assert rows == list(rows_in_lists(documents, length, packed=packed))
    whole = pack(documents, length, packed=packed)
    assert whole.tokens.tolist() == [tokens for tokens, _, _ in rows]


@pytest.mark.parametrize("shares", [[1.0], [0.9, 0.1], [0.5, 0.3, 0.2]])
def test_a_mixture_keeps_its_shares_at_every_moment(shares: list[float]) -> None:
    sizes = [7, 5, 3][: len(shares)]
    found = mixture(sizes, shares, 200, seed=1).tolist()
    for stop in (1, 10, 57, 200):
        counts = Counter(source for source, _ in found[:stop])
        for source, share in enumerate(shares):
            assert abs(counts[source] - share * stop) <= 1
    assert found == mixture(sizes, shares, 200, seed=1).tolist()
    assert found != mixture(sizes, shares, 200, seed=2).tolist()
    assert found[:50] == mixture(sizes, shares, 50, seed=1).tolist()


def mixture_in_a_loop(
    sizes: Sequence[int], shares: Sequence[float], num_rows: int, *, seed: int
) -> list[list[int]]:
    """A mixture as one would say it: row by row."""
    random = np.random.default_rng(seed)
    orders: list[list[int]] = [[] for _ in sizes]
    taken = [0] * len(sizes)
    found = []
    for i in range(num_rows):
        behind = [share * (i + 1) - n for share, n in zip(shares, taken, strict=True)]
        source = max(range(len(sizes)), key=behind.__getitem__)
        if not orders[source]:
            orders[source] = random.permutation(sizes[source]).tolist()
        found.append([source, orders[source].pop()])
        taken[source] += 1
    return found


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=4),
    st.integers(0, 60),
    st.integers(0, 3),
)
def test_a_mixture_is_what_a_plain_loop_makes(
    sources: list[tuple[int, float]], num_rows: int, seed: int
) -> None:
    """A training of an older version goes on with the rows that it would have had."""
    sizes = [size for size, _ in sources]
    total = sum(weight for _, weight in sources)
    shares = [weight / total if total else 1 / len(sources) for _, weight in sources]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TURNS", 7)
        found = mixture(sizes, shares, num_rows, seed=seed)
    assert found.shape == (num_rows, 2)
    assert found.tolist() == mixture_in_a_loop(sizes, shares, num_rows, seed=seed)


def test_every_row_comes_before_one_comes_twice() -> None:
    found = mixture([10], [1.0], 30, seed=0)[:, 1].tolist()
    for start in (0, 10, 20):
        assert sorted(found[start : start + 10]) == list(range(10))


def test_digests_differ_by_any_label() -> None:
    blocks = pack(numbered([5]), 6, packed=True)
    labels = blocks.labels.copy()
    labels[0, 1] = IGNORED
    assert digest(blocks) != digest(Blocks(blocks.tokens, labels, blocks.positions))


def test_big_arrays_are_counted_and_hashed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a long training lie in files that are larger than memory."""
    blocks = pack(numbered([5, 30, 9]), 6, packed=True)
    whole = digest(blocks), blocks.targets.tolist()
    monkeypatch.setattr(module, "CHUNK", 13)
    assert (digest(blocks), blocks.targets.tolist()) == whole
    assert blocks.num_targets == 4 + 29 + 8
