"""Tokenizers of the donors: whose the result gets, and whether two mean the same by a number.

Read from their JSON files, without a library; build opens those whose files do not say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from hybridize.errors import Finding, HybridizeError
from hybridize.model.checkpoint import read_json
from hybridize.model.donors import Donor
from hybridize.model.special_tokens import added_tokens
from hybridize.recipe.file import RecipeFile

WHOLE = "tokenizer.json"
SAME_TOKENS = 0.9  # share of a vocabulary; fine-tunes add some tokens

Tokens = Mapping[int, str]  # number -> token


def choose_tokenizer(
    recipe: RecipeFile, donors: Mapping[str, Donor], embeddings: Donor, findings: list[Finding]
) -> Donor | None:
    """Whose tokenizer files the result gets; None if the donor of the embeddings has none."""
    asked = recipe.recipe.tokenizer
    donor = donors[asked] if asked else embeddings
    if not donor.tokenizer_files:
        if asked:
            findings.append(
                Finding(
                    f"donor '{asked}' has no tokenizer files",
                    fix="name a donor that has them, or leave the key out",
                    place=recipe.place("tokenizer"),
                )
            )
        return None
    if donor.name != embeddings.name and (tokens := tokens_in_files(donor)):
        findings += refuse_tokenizer(
            recipe, embeddings, donor, share=shared_tokens(embeddings, donor), highest=max(tokens)
        )
    return donor


def refuse_tokenizer(
    recipe: RecipeFile, embeddings: Donor, tokenizer: Donor, *, share: float | None, highest: int
) -> list[Finding]:
    """Why a tokenizer cannot stand before another donor's embeddings.

    How many rows each donor has says nothing: they are padded to a round number, or trimmed.

    Args:
        share: of tokens that both number alike, if it is known.
        highest: number that the tokenizer gives.
    """
    found = []
    if highest >= (rows := embeddings.anatomy.vocabulary):
        found.append(
            f"the tokenizer of '{tokenizer.name}' gives numbers up to {highest}, the embeddings of "
            f"'{embeddings.name}' have {rows} rows"
        )
    if share is not None and share < SAME_TOKENS:
        found.append(
            f"the tokens differ: {share:.0%} of the numbers that the tokenizer of "
            f"'{tokenizer.name}' gives mean the same to the embeddings of '{embeddings.name}'"
        )
    fix, place = f"write tokenizer: {embeddings.name}", recipe.place("tokenizer")
    return [Finding(text, fix, place) for text in found]


def refuse_other_tokens(
    recipe: RecipeFile, embeddings: Donor, head: Donor, findings: list[Finding]
) -> None:
    """A head that writes other tokens than the embeddings read.

    Two tokenizers may also be of one size, and mean other tokens by the same numbers.
    """
    rows = (head.anatomy.head or (head.anatomy.embedding,))[0].shape[0]
    if rows != embeddings.anatomy.vocabulary:
        findings.append(
            _of_head(
                recipe,
                embeddings,
                head,
                f"the vocabulary differs: {embeddings.anatomy.vocabulary} rows in the embeddings "
                f"of '{embeddings.name}', {rows} in the head of '{head.name}'",
            )
        )
    if embeddings.name != head.name:
        findings += refuse_head(recipe, embeddings, head, share=shared_tokens(embeddings, head))


def refuse_head(
    recipe: RecipeFile, embeddings: Donor, head: Donor, *, share: float | None
) -> list[Finding]:
    """Why a head cannot stand above another donor's embeddings, if it is known how they number."""
    if share is None or share >= SAME_TOKENS:
        return []
    found = (
        f"the tokens differ: {share:.0%} of the numbers that the embeddings of "
        f"'{embeddings.name}' read mean the same to the head of '{head.name}'"
    )
    return [_of_head(recipe, embeddings, head, found)]


def _of_head(recipe: RecipeFile, embeddings: Donor, head: Donor, found: str) -> Finding:
    fix = (
        "take embeddings and head from one donor: "
        f"embeddings: {head.name}, or head: {embeddings.name}"
    )
    return Finding(found, fix, recipe.place("head" if recipe.recipe.head else "slots"))


def uncompared(embeddings: Donor, *others: Donor | None) -> tuple[Donor, ...]:
    """Donors whose tokens only the opened tokenizers can compare with those of the embeddings."""
    distinct = {donor.name: donor for donor in others if donor and donor.name != embeddings.name}
    return tuple(
        donor
        for donor in distinct.values()
        if embeddings.tokenizer_files and donor.tokenizer_files
        if not (_vocabulary(embeddings) and _vocabulary(donor))
    )


def shared_tokens(one: Donor, other: Donor) -> float | None:
    """Share of the smaller vocabulary with the same numbers in both; None if files do not say."""
    files = [donor.folder / WHOLE for donor in (one, other)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return 1.0
    first, second = tokens_in_files(one), tokens_in_files(other)
    return None if first is None or second is None else share_of(first, second)


def share_of(one: Tokens, other: Tokens) -> float | None:
    """Share of the smaller vocabulary with the same numbers in both; None if it is empty."""
    fewer = min(len(one), len(other))
    return sum(other.get(n) == token for n, token in one.items()) / fewer if fewer else None


def tokens_in_files(donor: Donor) -> Tokens | None:
    """Number -> token, of tokenizer.json or vocab.json; None if there is neither."""
    file = _vocabulary(donor)
    if file is None:
        return None
    added = {} if file.name == WHOLE else added_tokens(donor.folder)
    return {**_read(file, file.stat().st_mtime_ns), **{n: token for token, n in added.items()}}


def _vocabulary(donor: Donor) -> Path | None:
    files = (donor.folder / name for name in (WHOLE, "vocab.json"))
    return next((file for file in files if file.is_file()), None)


@lru_cache(maxsize=2)  # two questions about one pair; a large vocabulary takes half a second
def _read(file: Path, _changed: int) -> Tokens:
    document = read_json(file)
    try:
        tokens = _of_tokenizer(document) if file.name == WHOLE else _numbered(document)
        if all(type(number) is int for number in tokens):
            return tokens
    except (AttributeError, KeyError, IndexError, TypeError):
        pass
    raise HybridizeError(
        "is not a vocabulary", fix="download or copy its tokenizer files again", place=str(file)
    )


def _of_tokenizer(document: Mapping[str, Any]) -> dict[int, str]:
    vocabulary: Any = document.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # of a unigram model: pairs of token and score
        tokens = {number: pair[0] for number, pair in enumerate(vocabulary)}
    else:
        tokens = _numbered(vocabulary)
    return tokens | {token["id"]: token["content"] for token in document.get("added_tokens", [])}


def _numbered(vocabulary: Mapping[str, int]) -> dict[int, str]:
    return {number: token for token, number in vocabulary.items()}
