"""A model whose policy says what learns: opened, frozen, and watched (torch side)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

import hybridize.assembler.runtime  # noqa: F401 - registers the hybrid's classes
from hybridize.assembler.tensors import TORCH
from hybridize.cpt.blocks import IGNORED, Blocks
from hybridize.cpt.policy import Policy
from hybridize.errors import CheckFailed, HybridizeError

EVALUATION_ROWS = 8  # that run at a time
LEAK = 1e-4  # of the largest logit, by which another document may change one: rounding


def open_model(folder: Path, device: str) -> PreTrainedModel:
    """A built model in the dtype that it is stored in, nothing learning."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.requires_grad_(False)
    model.to(device)  # type: ignore[arg-type]
    return model


def apply(model: PreTrainedModel, policy: Policy) -> dict[str, Tensor]:
    """Let just those tensors learn that a policy names, as fp32 masters; by name.

    Raises:
        HybridizeError: the model in memory has no parameter of such a name.
    """
    parameters = dict(model.named_parameters())
    missing = [t.name for t in policy.trained if t.name not in parameters]
    if missing:
        raise HybridizeError(
            f"the model in memory has no parameter '{missing[0]}' ({len(missing)} of the policy's "
            "are named otherwise there)",
            fix="build the model with target: hybrid, whose names are the same on disk and in "
            "memory",
            place=str(policy.stack.folder),
        )
    model.requires_grad_(False)
    trained: dict[str, Tensor] = {t.name: parameters[t.name] for t in policy.trained}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return trained


def frozen_hashes(model: PreTrainedModel) -> dict[str, str]:
    """BLAKE3 of each parameter and buffer that does not learn."""
    return {
        name: _hash(tensor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if not tensor.requires_grad
    }


def check_frozen(model: PreTrainedModel, before: dict[str, str]) -> None:
    """Nothing that was frozen throughout, as `before` has it, has changed by a bit.

    Raises:
        CheckFailed: something has.
    """
    now = frozen_hashes(model)
    changed = [name for name, value in before.items() if now.get(name) != value]
    if changed:
        raise CheckFailed(f"{len(changed)} frozen tensors have changed, {changed[0]} among them")


def _hash(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return blake3(data.numpy().tobytes()).hexdigest()


@torch.no_grad()
def loss(model: PreTrainedModel, blocks: Blocks, *, packed: bool) -> float:
    """Mean loss over all targets of some rows, in nats per token."""
    total, count = 0.0, 0
    was_training = model.training
    model.train(False)
    for start in range(0, len(blocks), EVALUATION_ROWS):
        rows = range(start, min(start + EVALUATION_ROWS, len(blocks)))
        batch = rows_of(blocks, rows, packed=packed)
        logits = model(**inputs_of(batch, model.device)).logits[:, :-1].float()
        labels = batch["labels"][:, 1:].to(model.device)
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum"
        )
        total += float(losses.double())
        count += int((labels != IGNORED).sum())
    model.train(was_training)
    return total / count


def rows_of(blocks: Blocks, rows: Sequence[int], *, packed: bool) -> dict[str, Tensor]:
    """A batch of rows, (rows, tokens) each; positions where they tell documents apart."""
    index = list(rows)
    arrays = {"input_ids": blocks.tokens, "labels": blocks.labels}
    arrays |= {"position_ids": blocks.positions} if packed else {}
    return {name: torch.from_numpy(a[index].astype("int64")) for name, a in arrays.items()}


def inputs_of(batch: dict[str, Tensor], device: Any) -> dict[str, Any]:
    """What a forward gets: no mask, since positions that start anew make one."""
    found: dict[str, Any] = {
        name: batch[name].to(device) for name in ("input_ids", "position_ids") if name in batch
    }
    return found | {"use_cache": False}


@torch.no_grad()
def isolates(model: PreTrainedModel, length: int) -> bool:
    """Whether documents in one row do not see each other, found by changing the first of two.

    A recurrent layer runs on from one document into the next; the hybrid's runtime refuses such
    rows, and a native model would let the one leak into the other.
    """
    half = max(2, min(length, 64) // 2)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (2, 2 * half), generator=generator)
    tokens[1, half:] = tokens[0, half:]
    positions = torch.arange(half).repeat(2)[None].expand(2, -1)
    model.train(False)
    try:
        batch = {"input_ids": tokens, "position_ids": positions}
        logits = model(**inputs_of(batch, model.device)).logits[:, half:].float()
    except (ValueError, TypeError):  # the runtime refuses such rows; some classes take no positions
        return False
    return float((logits[0] - logits[1]).abs().max()) <= LEAK * float(logits.abs().max())


def trained_state(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Tensors that learn, in fp32."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter.detach()


@torch.no_grad()
def round_as_stored(learnt: Mapping[str, Tensor], policy: Policy) -> None:
    """Give what has learnt the values that it will have on disk."""
    for tensor in policy.trained:
        value = learnt[tensor.name]
        value.copy_(value.to(TORCH[tensor.dtype]))
