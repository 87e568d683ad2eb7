"""Tokenizers of the donors: whose the result gets, and whether two mean the same by a number.

Read from their files, without a library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from hybridize.assembler.donors import Donor
from hybridize.errors import Finding
from hybridize.recipe import RecipeFile

SAME_TOKENS = 0.9  # share of a vocabulary; fine-tunes add some tokens


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
    if donor.anatomy.vocabulary > embeddings.anatomy.vocabulary:
        findings.append(
            Finding(
                f"the tokenizer of '{donor.name}' belongs to {donor.anatomy.vocabulary} rows, the "
                f"embeddings of '{embeddings.name}' have {embeddings.anatomy.vocabulary}",
                fix=f"write tokenizer: {embeddings.name}",
                place=recipe.place("tokenizer"),
            )
        )
    return donor


def refuse_other_tokens(
    recipe: RecipeFile, embeddings: Donor, head: Donor, findings: list[Finding]
) -> None:
    """A head that writes other tokens than the embeddings read.

    Two tokenizers may also be of one size, and mean other tokens by the same numbers.
    """
    found = []
    rows = (head.anatomy.head or (head.anatomy.embedding,))[0].shape[0]
    if rows != embeddings.anatomy.vocabulary:
        found.append(
            f"the vocabulary differs: {embeddings.anatomy.vocabulary} rows in the embeddings "
            f"of '{embeddings.name}', {rows} in the head of '{head.name}'"
        )
    share = shared_tokens(embeddings, head) if embeddings.name != head.name else None
    if share is not None and share < SAME_TOKENS:
        found.append(
            f"the tokens differ: {share:.0%} of the numbers that the embeddings of "
            f"'{embeddings.name}' read mean the same to the head of '{head.name}'"
        )
    fix = (
        "take embeddings and head from one donor: "
        f"embeddings: {head.name}, or head: {embeddings.name}"
    )
    place = recipe.place("head" if recipe.recipe.head else "slots")
    findings += [Finding(text, fix, place) for text in found]


def shared_tokens(one: Donor, other: Donor) -> float | None:
    """Share of the smaller vocabulary with the same numbers in both; None if files do not say."""
    files = [donor.folder / "tokenizer.json" for donor in (one, other)]
    if not all(file.is_file() for file in files):
        return None
    contents = [file.read_bytes() for file in files]
    if contents[0] == contents[1]:
        return 1.0
    first, second = (_tokens(content) for content in contents)
    fewer = min(len(first), len(second))
    return sum(second.get(n) == token for n, token in first.items()) / fewer if fewer else None


def _tokens(content: bytes) -> dict[int, str]:
    """Number -> token."""
    document = json.loads(content)
    vocabulary = document.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # of a unigram model: pairs of token and score
        tokens = {number: pair[0] for number, pair in enumerate(vocabulary)}
    else:
        tokens = {number: token for token, number in vocabulary.items()}
    return tokens | {added["id"]: added["content"] for added in document.get("added_tokens", [])}
