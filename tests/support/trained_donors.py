"""A small donor that has learnt something, for tests of what layers are worth."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.readers import code, prose, save, tokenizer
from tests.support.tiny import tiny_model

STEPS, ROWS, LENGTH = 160, 16, 48
DEPTH = 6


@cache
@torch.enable_grad()
def trained() -> PreTrainedModel:
    """A Llama of six layers that has read the texts of `readers` for some seconds."""
    torch.manual_seed(0)
    model = tiny_model("llama", seed=0, vocab_size=288, num_hidden_layers=DEPTH, hidden_size=64)
    tokens = torch.tensor(tokenizer([prose(), code()])(prose() + code())["input_ids"])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, (step + 1) / 10) * (1 - step / STEPS)
        rows = torch.randint(0, len(tokens) - LENGTH, (ROWS,), generator=generator)
        batch = torch.stack([tokens[i : i + LENGTH] for i in rows])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def save_trained(
    folder: Path, *, damaged: tuple[int, ...] = (), seed: int = 0, length: float = 1.0
) -> Path:
    """The donor under a folder; noise as strong as the weights themselves in some of its layers.

    Args:
        length: of its stream, in that of the donor itself: the same function of the tokens.
    """
    model = trained()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    for layer in damaged:
        for parameter in model.model.layers[layer].parameters():
            if parameter.ndim > 1:
                parameter += _noise(parameter, generator)
    for name, parameter in model.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            parameter *= length
    save(model, folder, tokenizer([prose(), code()]))
    model.load_state_dict(kept)
    return folder


def _noise(parameter: Tensor, generator: torch.Generator) -> Any:
    return torch.randn(parameter.shape, generator=generator) * parameter.std()
