"""Tensors on disk, mapped into memory or read, in the pieces that a model wants (torch side)."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridize.errors import HybridizeError
from hybridize.files.mapping import map_file
from hybridize.model.checkpoint import Checkpoint
from hybridize.torch_model.layout import OutTensor
from hybridize.torch_model.symbolic import Piece

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool,
}  # fmt: skip


class Tensors:
    """What lies in some checkpoints.

    Args:
        checkpoints: by the name that pieces have for them.
        device: where tensors are to be; on the CPU `mapped` copies nothing.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint], device: str = "cpu") -> None:
        self.device = device
        self._checkpoints = checkpoints
        self._maps: dict[Path, mmap.mmap] = {}
        self._moved: dict[tuple[Any, ...], Tensor] = {}

    def mapped(self, out: OutTensor, dtype: torch.dtype | None = None) -> Tensor:
        """A view of the files, brought to the device once; the page cache is its memory.

        Args:
            dtype: that the model computes in. Where it is float32 and the file holds 16 bits, the
                tensor is a copy, made once for all models that share it.
        """
        if out.zero:
            return torch.zeros(out.shape, dtype=TORCH[out.dtype], device=self.device)
        widen = dtype == torch.float32 and TORCH[out.dtype] in (torch.bfloat16, torch.float16)
        key = (out.pieces, out.shape, widen)
        if key not in self._moved:
            here = _join([self._map(piece) for piece in out.pieces], out, self.device)
            self._moved[key] = here.float() if widen else here
        return self._moved[key]

    def read(self, out: OutTensor) -> Tensor:
        """A copy in memory of its own, which goes with the last that holds it."""
        if out.zero:
            return self.mapped(out)
        return _join([self._read(piece) for piece in out.pieces], out, self.device)

    def absent(self, out: OutTensor, dtype: torch.dtype) -> Tensor:
        """A stand-in of the right shape that takes no memory; `dtype`: that of floats."""
        stored = TORCH[out.dtype]
        own = dtype if stored.is_floating_point else stored  # else a cast would give it memory
        return torch.zeros((), dtype=own, device=self.device).expand(out.shape)

    def _map(self, piece: Piece) -> Tensor:
        file, offset, count, dtype = self._place(piece)
        if file not in self._maps:
            self._maps[file] = map_file(file)
        if offset + count * dtype.itemsize > len(self._maps[file]):
            raise _ends_early(piece, file)
        return torch.frombuffer(self._maps[file], dtype=dtype, count=count, offset=offset)

    def _read(self, piece: Piece) -> Tensor:
        file, offset, count, dtype = self._place(piece)
        found = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            view, done = memoryview(found.numpy().data), 0
            while done < len(view):
                read = stream.readinto(view[done:])
                if not read:
                    raise _ends_early(piece, file)
                done += read
        return found.view(dtype)

    def _place(self, piece: Piece) -> tuple[Path, int, int, torch.dtype]:
        """File, offset in bytes, number of elements, and what they are."""
        tensor = self._checkpoints[piece.donor].tensors[piece.tensor]
        dtype = TORCH[tensor.dtype]
        offset = tensor.start + piece.start * dtype.itemsize
        return tensor.file, offset, piece.stop - piece.start, dtype


def _join(parts: list[Tensor], out: OutTensor, device: str) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.reshape(out.shape).to(device)


def _ends_early(piece: Piece, file: Path) -> HybridizeError:
    return HybridizeError(
        f"tensor '{piece.tensor}' ends early: the file became shorter", place=str(file)
    )
