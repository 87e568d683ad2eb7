"""Hybrids in memory, over tensors that are mapped from the donors' files (torch side).

A donor alone is the hybrid of all its layers in order, bit for bit. So a hybrid and its donors
share one copy of every weight, and that copy is the page cache's: what does not fit is read again.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from hybridize.assembler.donors import Donor
from hybridize.assembler.layout import OutTensor, hybrid_layout
from hybridize.assembler.outputs import TORCH_NAMES, tensors_of
from hybridize.assembler.runtime import HybridConfig, HybridForCausalLM
from hybridize.errors import HybridizeError

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool,
}  # fmt: skip


class Weights:
    """Tensors of donors on disk, each brought to the device once.

    Args:
        donors: by name.
        device: where models are to run; on the CPU nothing is copied.
    """

    def __init__(self, donors: Mapping[str, Donor], device: str = "cpu") -> None:
        self.donors, self.device = donors, device
        self._maps: dict[Path, mmap.mmap] = {}
        self._moved: dict[tuple[Any, ...], Tensor] = {}

    def model(
        self, config: Mapping[str, Any], made: Mapping[str, Tensor] | None = None
    ) -> HybridForCausalLM:
        """The hybrid of a config, in evaluation mode, without gradients.

        Args:
            config: content of a hybrid's config.json.
            made: tensors that no donor has, by name.
        """
        shapes = {name: tensors_of(self.donors[name]) for name in config["donors"]}
        layout = hybrid_layout(dict(config), shapes)
        state = {out.name: self._tensor(out) for out in layout if out.pieces or out.zero}
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        load: Any = HybridForCausalLM.from_pretrained  # its types know no state dict alone
        model: HybridForCausalLM = load(
            None,
            config=HybridConfig.from_dict(dict(config)),
            state_dict={**state, **(made or {})},
            dtype=getattr(torch, config["dtype"]),
            **({} if self.device == "cpu" else {"device_map": {"": self.device}}),
        )
        model.requires_grad_(False)
        model.train(False)
        return model

    def alone(self, name: str) -> HybridForCausalLM:
        """A donor alone: all its layers, in order."""
        donor = self.donors[name]
        return self.model(
            {
                "model_type": HybridConfig.model_type,
                "donors": {name: donor.config},
                "slots": [{"donor": name, "layer": i} for i in range(donor.depth)],
                "embeddings": name,
                "head": name,
                "tie_word_embeddings": not donor.anatomy.head,
                "dtype": TORCH_NAMES[donor.anatomy.dtype],
            }
        )

    def _tensor(self, out: OutTensor) -> Tensor:
        if out.zero:
            return torch.zeros(out.shape, dtype=TORCH[out.dtype], device=self.device)
        key = (out.pieces, out.shape)
        if key not in self._moved:
            parts = [self._piece(p.donor, p.tensor, p.start, p.stop) for p in out.pieces]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            self._moved[key] = whole.reshape(out.shape).to(self.device)
        return self._moved[key]

    def _piece(self, donor: str, name: str, start: int, stop: int) -> Tensor:
        tensor = self.donors[donor].checkpoint.tensors[name]
        dtype = TORCH[tensor.dtype]
        offset = tensor.start + start * dtype.itemsize
        if tensor.file not in self._maps:
            with tensor.file.open("rb") as stream:
                # Private pages that may be written to, though nobody does: torch asks for it.
                self._maps[tensor.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        if offset + (stop - start) * dtype.itemsize > len(self._maps[tensor.file]):
            raise HybridizeError(
                f"tensor '{name}' ends early: the file became shorter", place=str(tensor.file)
            )
        return torch.frombuffer(
            self._maps[tensor.file], dtype=dtype, count=stop - start, offset=offset
        )
