"""Where a sequence begins and ends: config.json, generation_config.json and tokenizer agree.

A result says what the donor of its tokenizer says. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridize.model import soundness
from hybridize.model.checkpoint import read_json
from hybridize.model.donors import Donor

GENERATION = "generation_config.json"
EOS = "eos_token_id"
SINGLE = ("bos_token_id", "pad_token_id")
KEYS = (*SINGLE, EOS)

Ids = Mapping[str, Any]  # of KEYS; a model may end at any of several tokens


def generation_of(folder: Path) -> dict[str, Any]:
    """Content of generation_config.json; empty where there is none."""
    return _json(folder / GENERATION)


def agreed(stated: Ids, tokenizer: Ids, rows: int) -> dict[str, Any]:
    """What a file states, brought in line with a tokenizer.

    Ends that the tokenizer does not know of are kept, since chat models have several.

    Args:
        stated: by a config.json or a generation_config.json.
        tokenizer: by the tokenizer; a key that is absent or None says nothing.
        rows: of the embedding: an id beyond them has no meaning to the model.
    """
    found = {key: stated[key] for key in KEYS if stated.get(key) is not None}
    own = {k: n for k in KEYS if isinstance(n := tokenizer.get(k), int) and n < rows}
    found |= {key: own[key] for key in SINGLE if key in own}
    if EOS in own and own[EOS] not in (ends := as_list(found.get(EOS))):
        found[EOS] = [own[EOS], *ends] if ends else own[EOS]
    return found


def as_list(ids: Any) -> list[Any]:
    """One id, several, or none as a list."""
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list | tuple) else [ids]


def contradictions(donor: Donor, rows: int) -> list[str]:
    """How the files of a tokenizer's donor disagree, and what becomes of it; for the plan.

    Args:
        rows: of the embedding that the result has.
    """
    files = {"config.json": donor.config, GENERATION: generation_of(donor.folder)}
    found = []
    for key, own in _in_files(donor).items():
        stated = {file: ids[key] for file, ids in files.items() if ids.get(key) is not None}
        others = [f"{ids} in {file}" for file, ids in stated.items() if own not in as_list(ids)]
        if own < rows and not others:
            continue
        said = f"{key.removesuffix('_token_id').upper()} is {own} in its tokenizer"
        if own >= rows:
            found.append(f"{said}, and the embedding has {rows} rows: it is left out")
        else:
            outcome = "ends where any of them says" if key == EOS else f"says {own}"
            found.append(f"{', '.join([said, *others])}: the result {outcome}")
    return [f"donor '{donor.name}': {text}" for text in found]


def _in_files(donor: Donor) -> dict[str, int]:
    """Ids of a tokenizer's special tokens, as far as its JSON files give them."""
    content = {
        **_json(donor.folder / "special_tokens_map.json"),
        **_json(donor.folder / "tokenizer_config.json"),
    }
    ids = added_tokens(donor.folder)
    found = {}
    for key in KEYS:
        token = content.get(key.removesuffix("_id"))
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in ids:
            found[key] = ids[text]
    return found


def added_tokens(folder: Path) -> dict[str, int]:
    """Tokens beside the vocabulary, and their ids, without reading all of a large file."""
    found = {t: n for t, n in _json(folder / "added_tokens.json").items() if isinstance(n, int)}
    declared = _json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if not isinstance(declared, dict):
        return found | {token: number for number, token in soundness.added_tokens(folder).items()}
    try:
        return found | {token["content"]: int(number) for number, token in declared.items()}
    except (KeyError, TypeError, ValueError):
        return found


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
