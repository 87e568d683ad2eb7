"""A model whose policy says what learns: opened, frozen, and watched (torch side).

In memory every model is the hybrid of its slots; names there and names on disk are brought
together by the pieces that each tensor is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor, nn
from transformers.utils import logging

from hybridize.cpt.backends import processes
from hybridize.cpt.plan.policy import Policy
from hybridize.cpt.state.tensors import State, like, whole
from hybridize.errors import CheckFailed, HybridizeError
from hybridize.machine import ranks
from hybridize.model.checkpoint import open_checkpoint, same_bytes
from hybridize.runtime import HybridForCausalLM
from hybridize.torch_model.layout import OutTensor
from hybridize.torch_model.loading import load_folder
from hybridize.torch_model.reader import TORCH

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Names:
    """Which tensors on disk each one in memory is made of.

    Attributes:
        layout: of each tensor in memory, the pieces of those on disk.
        tied: the head reads out with the embedding's matrix.
    """

    folder: Path
    layout: Mapping[str, OutTensor]
    tied: bool

    def learning(self, policy: Policy) -> list[str]:
        """Names in memory of what learns under a policy.

        Raises:
            HybridizeError: a tensor in memory is made of some that learn and some that do not, or
                of one that learns there is none in memory.
        """
        wanted = {tensor.name for tensor in policy.trained}
        found, left = [], set(wanted)
        for name, out in self.layout.items():
            pieces = {piece.tensor for piece in out.pieces}
            if not pieces & wanted:
                continue
            if not pieces <= wanted:
                raise HybridizeError(
                    f"{sorted(pieces & wanted)[0]} cannot learn without "
                    f"{sorted(pieces - wanted)[0]}: in memory the two are one tensor",
                    fix="let all of them learn, or none: patterns with * for their numbers",
                    place=str(self.folder),
                )
            found.append(name)
            left -= pieces
        if left:
            raise HybridizeError(
                f"the model in memory has no parameter '{sorted(left)[0]}' ({len(left)} of the "
                "policy's are missing there)",
                fix="leave it out of the policy",
                place=str(self.folder),
            )
        return found

    def roles(self, policy: Policy) -> dict[str, str]:
        """Role of each tensor that learns, by its name in memory."""
        roles, learning = policy.roles, self.learning(policy)
        return {name: roles[self.layout[name].pieces[0].tensor] for name in learning}

    def copies(self) -> dict[str, str]:
        """A tied head that lies in the files as well, and the embedding that it is a copy of."""
        there = open_checkpoint(self.folder).tensors
        used = {piece.tensor for out in self.layout.values() for piece in out.pieces}
        original = self.layout["model.embed_tokens.weight"].pieces[0].tensor
        spare = (n for n, t in there.items() if n not in used and t.shape == there[original].shape)
        return dict.fromkeys(spare, original) if self.tied else {}

    def on_disk(self, learnt: Mapping[str, Tensor]) -> State:
        """Tensors as they lie on disk, from those in memory, which are whole and on the CPU."""
        headers = open_checkpoint(self.folder).tensors
        found: State = {}
        for name, value in learnt.items():
            flat, at = value.reshape(-1), 0
            for piece in self.layout[name].pieces:
                header, count = headers[piece.tensor], piece.stop - piece.start
                target = found.setdefault(piece.tensor, flat.new_empty(header.numel))
                target[piece.start : piece.stop] = flat[at : at + count]
                at += count
        for copy, original in self.copies().items():
            if original in found:
                found[copy] = found[original]
        return {name: value.reshape(headers[name].shape) for name, value in found.items()}


@dataclass(frozen=True)
class TrainableModel:
    """A model folder in memory, of which some tensors learn.

    Attributes:
        dtype: of the stream: that of most weights.
    """

    names: Names
    model: HybridForCausalLM
    dtype: torch.dtype

    @property
    def half(self) -> bool:
        """Whether the model computes in 16 bits."""
        return self.dtype in HALF


def open_model(folder: Path, device: str) -> TrainableModel:
    """A built model in the dtype that it is stored in, nothing learning."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    loaded = load_folder(folder)
    loaded.model.to(device)  # type: ignore[arg-type]
    sizes: dict[torch.dtype, int] = {}
    for parameter in loaded.model.parameters():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    layout = {out.name: out for out in loaded.layout}
    names = Names(folder, layout, bool(loaded.model.config.tie_word_embeddings))
    headers = open_checkpoint(folder).tensors
    for copy, original in names.copies().items():
        if not same_bytes(headers[copy], headers[original], whole=True):
            raise HybridizeError(
                f"config.json says that the head is tied to the embedding, and {copy} differs from "
                f"{original}",
                fix="remove the one that is not meant, or write tie_word_embeddings: false",
                place=str(folder),
            )
    return TrainableModel(names, loaded.model, max(sizes, key=sizes.__getitem__))


def let_learn(tuned: TrainableModel, policy: Policy) -> None:
    """Let just those tensors learn that a policy names, as fp32 masters."""
    learning = tuned.names.learning(policy)
    tuned.model.requires_grad_(False)
    stay_in_evaluation(tuned.model)
    here = dict(tuned.model.named_parameters())
    for name in learning:
        # A copy even where it is fp32: what is opened lies in pages of the files.
        here[name].data = here[name].data.to(torch.float32, copy=True)
        here[name].requires_grad_(True)


def stay_in_evaluation(model: nn.Module) -> None:
    """Run as in evaluation for good, whatever a trainer says.

    Dropout, jitter of routers and dropped layers of the donors' configs would disturb what is
    frozen, and make each pass another one. What learns has the dropout of `dropout`.
    """
    model.train(False)
    model.__dict__["train"] = lambda mode=True: model


def put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters whole values from elsewhere; each process keeps its part of a sharded one."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(like(value, parameters[name]))


def trained_state(model: nn.Module) -> State:
    """Tensors that learn, whole, in fp32, by name: copies, which the main process alone keeps."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = whole(parameter)
            if ranks.is_main():
                found[name] = value.clone()
    return found


@torch.no_grad()
def round_as_stored(tuned: TrainableModel) -> None:
    """Give what learns the values that it will have on disk."""
    for name, parameter in tuned.model.named_parameters():
        if parameter.requires_grad:
            stored = TORCH[tuned.names.layout[name].dtype]
            parameter.copy_(parameter.to(stored).to(parameter.dtype))


def frozen_hashes(model: nn.Module) -> dict[str, str]:
    """BLAKE3 of each parameter that does not learn; all processes together, the main one hashes."""
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            value = whole(parameter)
            found[name] = tensor_hash(value) if ranks.is_main() else ""
    return found


def check_frozen(model: nn.Module, before: Mapping[str, str], place: str) -> None:
    """Nothing that is frozen has changed by a bit.

    Args:
        place: for the error.

    Raises:
        CheckFailed: something has.
    """
    now = frozen_hashes(model)
    changed = processes.agreed([name for name, value in before.items() if now.get(name) != value])
    if changed:
        raise CheckFailed(
            f"{len(changed)} frozen tensors have changed, {changed[0]} among them",
            fix="nothing was written; report it, with the recipe",
            place=place,
        )


def tensor_hash(tensor: Tensor) -> str:
    """BLAKE3 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return blake3(data.numpy().data).hexdigest()
