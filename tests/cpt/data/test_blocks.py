"""Packing loses no token, overwrites none, and predicts each but the first of a document once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.cpt.blocks import IGNORED, Blocks, Document, digest, load, mixture, pack, save

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


def test_saved_rows_are_found_by_their_key_alone(tmp_path: Path) -> None:
    blocks = pack(numbered([5, 3, 9]), 6, packed=True)
    save(blocks, tmp_path / "rows", "key")
    found = load(tmp_path / "rows", "key")
    assert found is not None
    assert isinstance(found.tokens, np.memmap)
    assert digest(found) == digest(blocks)
    assert load(tmp_path / "rows", "another") is None
    assert load(tmp_path / "nothing", "key") is None


@pytest.mark.parametrize("shares", [[1.0], [0.9, 0.1], [0.5, 0.3, 0.2]])
def test_a_mixture_keeps_its_shares_at_every_moment(shares: list[float]) -> None:
    sizes = [7, 5, 3][: len(shares)]
    found = mixture(sizes, shares, 200, seed=1)
    for stop in (1, 10, 57, 200):
        counts = Counter(source for source, _ in found[:stop])
        for source, share in enumerate(shares):
            assert abs(counts[source] - share * stop) <= 1
    assert found == mixture(sizes, shares, 200, seed=1)
    assert found != mixture(sizes, shares, 200, seed=2)
    assert found[:50] == mixture(sizes, shares, 50, seed=1)


def test_every_row_comes_before_one_comes_twice() -> None:
    found = [row for _, row in mixture([10], [1.0], 30, seed=0)]
    for start in (0, 10, 20):
        assert sorted(found[start : start + 10]) == list(range(10))


def test_digests_differ_by_any_label() -> None:
    blocks = pack(numbered([5]), 6, packed=True)
    labels = blocks.labels.copy()
    labels[0, 1] = IGNORED
    assert digest(blocks) != digest(Blocks(blocks.tokens, labels, blocks.positions))
