"""Forwards and gradients beside transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybridize.cpt.data.blocks import IGNORED
from hybridize.cpt.plan.model_tensors import read_model_tensors
from hybridize.cpt.plan.policy import Entry, resolve
from hybridize.cpt.train.forward import (
    Forward,
)
from hybridize.cpt.train.trainable_model import TrainableModel, let_learn, open_model


def rows() -> tuple[Tensor, Tensor]:
    """Two rows, and labels of which some are not to be predicted."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 60, (2, 12), generator=generator)
    labels = ids.clone()
    labels[0, 5:8] = IGNORED
    return ids, labels


def opened(folder: Path, *entries: Entry, start: int = 0) -> tuple[TrainableModel, Forward]:
    tuned = open_model(folder, "cpu")
    let_learn(tuned, resolve(read_model_tensors(folder), entries))
    return tuned, Forward(tuned, start=start)


def gradients(tuned: TrainableModel, forward: Forward, **given: Any) -> dict[str, Tensor]:
    """Of each tensor that learns, by its name on disk."""
    ids, labels = rows()
    tuned.model.zero_grad()
    (forward(ids, labels, **given)["loss"] / 7).backward()
    found = {n: p.grad for n, p in tuned.model.named_parameters() if p.requires_grad}
    return tuned.names.on_disk({name: g for name, g in found.items() if g is not None})


def of_transformers(model: PreTrainedModel) -> tuple[float, dict[str, Tensor]]:
    """Summed loss, and gradients, as transformers' own class has them."""
    ids, labels = rows()
    logits = model(ids, use_cache=False).logits[:, :-1].float()
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="sum"
    )
    (loss / 7).backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
