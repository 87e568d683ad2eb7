"""Tokenizers of one size that number other tokens are found before their donors are mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridize.assembler.donors import Donor, load_donor
from hybridize.assembler.vocabulary import shared_tokens
from hybridize.errors import HybridizeError
from tests.assembler.stacks import UNFITTED, plan_of, save_donor

WORDS = [f"w{number}" for number in range(64)]  # as many as the tiny donors' embeddings have rows


def bpe(words: list[str], added: dict[int, str] | None = None) -> dict[str, Any]:
    """What matters of a tokenizer.json, numbers from 0 on."""
    return {
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}},
        "added_tokens": [{"id": i, "content": token} for i, token in (added or {}).items()],
    }


def unigram(words: list[str]) -> dict[str, Any]:
    return {"model": {"type": "Unigram", "vocab": [[word, -1.5] for word in words]}}


def make_donor(folder: Path, tokenizer: dict[str, Any] | None) -> Donor:
    save_donor(folder, "llama")
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return load_donor(folder, name=folder.name, source=folder.name, place=folder.name)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        (bpe(WORDS), bpe(WORDS), 1.0),
        (bpe(WORDS), bpe(WORDS[::-1]), 0.0),
        (bpe(WORDS), bpe([*WORDS[:48], *(f"v{i}" for i in range(16))]), 0.75),
        (bpe(WORDS), unigram(WORDS), 1.0),
        # A fine-tune adds tokens, or gives names to numbers that were kept free.
        (bpe(WORDS), bpe(WORDS, {64: "<|tool|>", 65: "<|think|>"}), 1.0),
        (bpe(WORDS), bpe(WORDS, {63: "<|tool|>"}), 63 / 64),
        (bpe(WORDS[:32], {32: "w32"}), bpe(WORDS), 1.0),
        (bpe([]), bpe(WORDS), None),
        (None, bpe(WORDS), None),
    ],
)
def test_the_share_is_of_numbers_that_mean_the_same(
    tmp_path: Path, one: Any, other: Any, share: float | None
) -> None:
    donors = [make_donor(tmp_path / name, t) for name, t in (("a", one), ("b", other))]
    assert shared_tokens(*donors) == share
    assert shared_tokens(*donors[::-1]) == share


def recipe(**keys: str) -> dict[str, Any]:
    return {
        "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
        "slots": [{"from": "a", "layer": 0}, {"from": "b", "layer": 1}],
        "bridges": UNFITTED,
        **keys,
    }


def test_embeddings_and_head_of_other_tokens_are_refused(tmp_path: Path) -> None:
    """The model would answer in words that nobody meant, whatever its bridges are fitted to."""
    make_donor(tmp_path / "a", bpe(WORDS))
    make_donor(tmp_path / "b", bpe([*WORDS[:6], *(f"v{i}" for i in range(58))]))
    with pytest.raises(HybridizeError) as caught:
        plan_of(tmp_path, recipe())
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "recipe.yaml:7:1: slots: the tokens differ: 9% of the numbers that the embeddings of 'a' "
        "read mean the same to the head of 'b'\n"
        "  fix: take embeddings and head from one donor: embeddings: b, or head: a"
    )
    with pytest.raises(HybridizeError) as caught:
        plan_of(tmp_path, recipe(head="b"))
    assert ": head: the tokens differ: 9%" in str(caught.value)


@pytest.mark.parametrize("donor", ["a", "b"])
def test_embeddings_and_head_of_one_donor_may_meet_layers_of_other_tokens(
    tmp_path: Path, donor: str
) -> None:
    make_donor(tmp_path / "a", bpe(WORDS))
    make_donor(tmp_path / "b", bpe(WORDS[::-1]))
    plan = plan_of(tmp_path, recipe(embeddings=donor, head=donor))
    assert (plan.embeddings, plan.head) == (donor, donor)


@pytest.mark.parametrize("other", [bpe(WORDS), bpe(WORDS, {63: "<|tool|>"}), None])
def test_embeddings_and_head_of_the_same_tokens_may_come_from_two_donors(
    tmp_path: Path, other: Any
) -> None:
    """So may those of donors whose files do not say."""
    make_donor(tmp_path / "a", bpe(WORDS))
    make_donor(tmp_path / "b", other)
    plan = plan_of(tmp_path, recipe())
    assert (plan.embeddings, plan.head) == ("a", "b")
