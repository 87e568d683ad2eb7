"""Tokenizers of one size that number other tokens are found before their donors are mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridize.assembler.assembly.assemble import prove_target
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.errors import HybridizeError
from hybridize.model.donors import Donor, load_donor
from hybridize.model.vocabulary import shared_tokens
from hybridize.torch_model.tokenization import open_tokenizer
from tests.support.readers import code, prose, tokenizer
from tests.support.stacks import UNFITTED, build_in, plan_of, save_donor

WORDS = [f"w{number}" for number in range(64)]  # as many as the tiny donors' embeddings have rows


def bpe(words: list[str], added: dict[int, str] | None = None) -> dict[str, Any]:
    """What matters of a tokenizer.json, numbers from 0 on."""
    return {
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}},
        "added_tokens": [{"id": i, "content": token} for i, token in (added or {}).items()],
    }


def unigram(words: list[str]) -> dict[str, Any]:
    return {"model": {"type": "Unigram", "vocab": [[word, -1.5] for word in words]}}


def make_donor(folder: Path, tokenizer: dict[str, Any] | None, *, rows: int = 64) -> Donor:
    save_donor(folder, "llama", vocab_size=rows)
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
    donors = [make_donor(tmp_path / name, t, rows=72) for name, t in (("a", one), ("b", other))]
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
    """So may those of donors whose files do not say: but the plan does."""
    make_donor(tmp_path / "a", bpe(WORDS))
    make_donor(tmp_path / "b", other)
    plan = plan_of(tmp_path, recipe())
    assert (plan.embeddings, plan.head) == ("a", "b")
    unknown = "tokens of 'a' and 'b' cannot be compared: no tokenizer files in 'b'"
    assert (unknown in plan.notes) == (other is None)


def over() -> dict[str, Any]:
    """The tokenizer of `b` over the embeddings of `a`."""
    return recipe(embeddings="a", head="a", tokenizer="b")


@pytest.mark.parametrize(("mine", "theirs"), [(64, 80), (80, 64), (64, 64)])
def test_padded_or_trimmed_rows_do_not_matter_to_a_tokenizer(
    tmp_path: Path, mine: int, theirs: int
) -> None:
    """A chat model's rows are often padded to a round number, its base's are not."""
    for name, rows in (("a", mine), ("b", theirs)):
        save_donor(tmp_path / name, "llama", vocab_size=rows)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(bpe(WORDS)))
    plan = plan_of(tmp_path, over())
    assert plan.tokenizer is not None
    assert plan.tokenizer.name == "b"


def test_a_token_without_a_row_is_refused(tmp_path: Path) -> None:
    make_donor(tmp_path / "a", bpe(WORDS))
    save_donor(tmp_path / "b", "llama", vocab_size=80)
    (tmp_path / "b/tokenizer.json").write_text(json.dumps(bpe(WORDS, {64: "<|im_end|>"})))
    with pytest.raises(HybridizeError) as caught:
        plan_of(tmp_path, over())
    assert (
        "tokenizer: the tokenizer of 'b' gives numbers up to 64, the embeddings of 'a' have 64 rows"
        "\n  fix: write tokenizer: a"
    ) in str(caught.value)


def test_a_tokenizer_of_other_tokens_is_refused(tmp_path: Path) -> None:
    """Its numbers would look up the vectors of other words."""
    make_donor(tmp_path / "a", bpe(WORDS))
    make_donor(tmp_path / "b", bpe(WORDS[::-1]))
    with pytest.raises(HybridizeError, match="0% of the numbers that the tokenizer of 'b' gives"):
        plan_of(tmp_path, over())


def save_pieces(folder: Path, text: str) -> None:
    """A donor with a tokenizer.model alone."""
    import sentencepiece

    save_donor(folder, "llama", vocab_size=400)
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(text.splitlines()),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )


def save_as_json(folder: Path, pieces: Path) -> None:
    """The same tokenizer as a tokenizer.json."""
    save_donor(folder, "llama", vocab_size=400)
    open_tokenizer(pieces).save_pretrained(folder)


def test_tokenizers_of_two_kinds_are_compared_by_what_they_do(tmp_path: Path) -> None:
    """The files of one say nothing of the files of the other; build opens both."""
    save_pieces(tmp_path / "a", prose() + code())
    save_as_json(tmp_path / "b", tmp_path / "a")
    note = (
        "tokens of 'a' and 'b': to be compared by build, which opens both tokenizers, since not "
        "both have a tokenizer.json or vocab.json"
    )
    plan = plan_of(tmp_path, recipe(tokenizer="b"))
    assert note in plan.notes
    found = "tokens of 'a' and 'b': 100% of their numbers mean the same, a probe text has the same "
    assert f"{found}ids" in prove_target(plan, LocalWorker()).notes
    assert f"{found}ids" in build_in(tmp_path, recipe(tokenizer="b"), check="structure").checks


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, "of the numbers that the embeddings of 'a' read mean the same to the head of 'b'"),
        (
            {"embeddings": "a", "head": "a", "tokenizer": "b"},
            "of the numbers that the tokenizer of 'b' gives mean the same to the embeddings of 'a'",
        ),
    ],
)
def test_other_tokens_of_another_kind_stop_the_build_before_the_copy(
    tmp_path: Path, keys: dict[str, str], found: str
) -> None:
    save_pieces(tmp_path / "a", prose())
    save_donor(tmp_path / "b", "llama", vocab_size=400)
    tokenizer([code()], vocabulary=400).save_pretrained(tmp_path / "b")
    with pytest.raises(HybridizeError, match=found):
        build_in(tmp_path, recipe(**keys), check="structure")
    assert not (tmp_path / "out").exists()


def test_what_nobody_can_open_is_said(tmp_path: Path) -> None:
    save_pieces(tmp_path / "a", prose() + code())
    save_donor(tmp_path / "b", "llama", vocab_size=400)
    (tmp_path / "b/tokenizer.model").write_bytes(b"no protocol buffer")
    checks = build_in(tmp_path, recipe(), check="structure").checks
    assert any("tokens of 'a' and 'b' are not compared: its tokenizer" in c for c in checks)


def test_vocabularies_alone_are_read_by_the_plan(tmp_path: Path) -> None:
    """vocab.json and added_tokens.json, as GPT-2's age left them."""
    donors = []
    for name in ("a", "b"):
        save_donor(tmp_path / name, "llama")
        words = {word: i for i, word in enumerate(WORDS[:48])}
        (tmp_path / name / "vocab.json").write_text(json.dumps(words))
        donors.append(load_donor(tmp_path / name, name=name, source=name, place=name))
    (tmp_path / "b/added_tokens.json").write_text('{"<|tool|>": 47}')
    assert shared_tokens(*donors) == 47 / 48
    (tmp_path / "b/vocab.json").unlink()
    (tmp_path / "b/tokenizer.json").write_text(json.dumps(bpe(WORDS[:48])))
    assert shared_tokens(*donors) == 1.0


def test_tokenizers_that_cannot_be_one_are_named(tmp_path: Path) -> None:
    make_donor(tmp_path / "a", bpe(WORDS))
    vocabularies = ("[1]", '{"a": []}', '{"a": "0"}', '{"a": null}', "7")
    models = (f'{{"model": {{"vocab": {vocabulary}}}}}' for vocabulary in vocabularies)
    for content in ("[]", "{", '{"model": []}', '{"added_tokens": [{"id": "x"}]}', *models):
        make_donor(tmp_path / "b", None)
        (tmp_path / "b/tokenizer.json").write_text(content)
        for keys in ({}, {"embeddings": "a", "head": "a", "tokenizer": "b"}):
            with pytest.raises(HybridizeError, match=r"tokenizer\.json: "):
                plan_of(tmp_path, recipe(**keys))
