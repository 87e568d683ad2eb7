"""Tokenizers of other kinds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.support.readers import code, prose


@cache
def splitting() -> str:
    """A byte-level BPE with a split of its own before it, which GPT-2's class would replace."""
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([prose(), code(), "in 2023 of 1234 " * 20], trainer)
    # Merges across the split: whoever leaves it out finds fewer tokens.
    document = json.loads(made.to_str())
    vocabulary, merges = document["model"]["vocab"], document["model"]["merges"]
    for pair in (["2", "0"], ["2", "3"], ["20", "23"], ["Ġ", "2023"]):
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(pair)
    return json.dumps(document)


def write_tokenizer(folder: Path, **config: Any) -> None:
    (folder / "tokenizer.json").write_text(splitting())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", **config}))
