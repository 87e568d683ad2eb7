"""Donors that can read: small models of random weights, with tokenizers, and text for them."""

from __future__ import annotations

import inspect
import json
import random
import textwrap
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.support.tiny import tiny_model

VOCABULARY = 288


@cache
def prose() -> str:
    """Text that every machine has."""
    return "\n\n".join(
        inspect.cleandoc(m.__doc__ or "") for m in (random, json, textwrap, argparse())
    )


def argparse() -> Any:
    import argparse as module

    return module


def code() -> str:
    """Text of another kind."""
    return inspect.getsource(textwrap) + inspect.getsource(random)


def tokenizer(texts: Iterable[str], *, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def save_reader(
    folder: Path,
    model_type: str = "llama",
    *,
    seed: int = 0,
    text: str | None = None,
    vocabulary: int = VOCABULARY,
    **overrides: Any,
) -> PreTrainedModel:
    """A tiny donor with a tokenizer, under `folder`."""
    model = tiny_model(model_type, seed=seed, vocab_size=vocabulary, **overrides)
    return save(model, folder, tokenizer([text or prose()], vocabulary=vocabulary))


def save(
    model: PreTrainedModel, folder: Path, reads_with: PreTrainedTokenizerFast
) -> PreTrainedModel:
    model.save_pretrained(folder)
    reads_with.save_pretrained(folder)
    return model


def write_text(folder: Path, name: str = "text.txt", *, repeat: int = 1) -> str:
    """A file of text for `calibration.data`; its name."""
    (folder / name).write_text((prose() + code()) * repeat)
    return name


@torch.no_grad()
def in_another_basis(model: PreTrainedModel, basis: Tensor) -> PreTrainedModel:
    """The same function of the tokens as a Llama, computed in a stream of another basis.

    The weights of its norms move into the matrices behind them, so that any rotation passes.

    Args:
        basis: (new width, width) with orthonormal columns: a permutation, a rotation, a padding.
    """
    width, wide = model.config.hidden_size, len(basis)
    config = type(model.config).from_dict(model.config.to_dict())
    config.hidden_size, config.head_dim = (
        wide,
        model.config.head_dim or width // config.num_attention_heads,
    )
    # The mean square falls when zeros join: with this epsilon and weight, no norm notices.
    config.rms_norm_eps = model.config.rms_norm_eps * width / wide
    twin = type(model)(config).eval()
    state, old = {}, model.state_dict()
    weight = (width / wide) ** 0.5
    behind = {
        "q_proj": "input_layernorm", "k_proj": "input_layernorm", "v_proj": "input_layernorm",
        "gate_proj": "post_attention_layernorm", "up_proj": "post_attention_layernorm",
    }  # fmt: skip
    for name, value in old.items():
        part = name.split(".")[-2]
        if part in behind:
            norm = old[f"{name.split('.self_attn')[0].split('.mlp')[0]}.{behind[part]}.weight"]
            state[name] = (value * norm) @ basis.T
        elif part == "lm_head":
            state[name] = (value * old["model.norm.weight"]) @ basis.T
        elif part == "embed_tokens":
            state[name] = value @ basis.T
        elif part in ("o_proj", "down_proj"):
            state[name] = basis @ value
        else:  # a norm
            state[name] = torch.full((wide,), weight)
    twin.load_state_dict(state)
    return twin
