"""Tensors that are known only as stretches of donors' tensors, to run conversions without bytes.

Offsets are in elements, 0-based; `stop` is exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Piece:
    """A contiguous stretch of one donor tensor: elements `start` to `stop`, row-major."""

    donor: str
    tensor: str
    start: int
    stop: int


class NotBytewise(Exception):
    """An operation that a symbolic tensor cannot express."""


@dataclass(frozen=True)
class Symbolic:
    """A tensor that is known only as a row of stretches of donors' tensors.

    It answers the few functions of torch that merely move contiguous blocks, so that
    transformers' conversion code runs on it unchanged.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @classmethod
    def whole(cls, donor: str, name: str, dtype: str, shape: Sequence[int]) -> Symbolic:
        return cls(dtype, tuple(shape), (Piece(donor, name, 0, math.prod(shape)),))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int) -> int:
        return self.shape[dim]

    def contiguous(self) -> Symbolic:
        return self

    def squeeze(self, dim: int) -> Symbolic:
        if self.shape[dim] != 1:
            return self
        dim %= self.ndim
        return Symbolic(self.dtype, self.shape[:dim] + self.shape[dim + 1 :], self.pieces)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Symbolic, ...]:
        return _split(self, -(-self.shape[dim] // chunks), dim=dim)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotBytewise(f"Tensor.{name}")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        known: dict[Any, Callable[..., Any]] = {
            torch.cat: _cat,
            torch.stack: _stack,
            torch.chunk: cls.chunk,
            torch.split: _split,
            torch.unbind: _unbind,
        }
        if func not in known:
            raise NotBytewise(f"torch.{getattr(func, '__name__', func)}")
        return known[func](*args, **(kwargs or {}))


def _blocks(tensor: Symbolic, dim: int) -> list[tuple[Piece, ...]]:
    """The tensor's memory, cut at every index of the dimensions before `dim`.

    In one pass: the fused experts of a layer are hundreds of pieces.
    """
    length = math.prod(tensor.shape[dim:])
    blocks: list[tuple[Piece, ...]] = []
    block: list[Piece] = []
    room = length
    for piece in tensor.pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + room)
            block.append(Piece(piece.donor, piece.tensor, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                blocks.append(tuple(block))
                block, room = [], length
    return blocks


def _stretch(pieces: Sequence[Piece], start: int, stop: int) -> tuple[Piece, ...]:
    """Elements `start` to `stop` of a row of pieces."""
    taken, offset = [], 0
    for piece in pieces:
        length = piece.stop - piece.start
        low, high = max(start - offset, 0), min(stop - offset, length)
        if low < high:
            taken.append(Piece(piece.donor, piece.tensor, piece.start + low, piece.start + high))
        offset += length
    return tuple(taken)


def _cat(tensors: Sequence[Symbolic], dim: int = 0) -> Symbolic:
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) > 1:
        raise NotBytewise(f"its parts have different dtypes: {', '.join(sorted(dtypes))}")
    first = tensors[0]
    dim %= first.ndim
    blocks = [_blocks(t, dim) for t in tensors]
    pieces = [piece for row in zip(*blocks, strict=True) for block in row for piece in block]
    total = sum(t.shape[dim] for t in tensors)
    return Symbolic(
        first.dtype, (*first.shape[:dim], total, *first.shape[dim + 1 :]), _joined(pieces)
    )


def _stack(tensors: Sequence[Symbolic], dim: int = 0) -> Symbolic:
    return _cat(
        [Symbolic(t.dtype, (*t.shape[:dim], 1, *t.shape[dim:]), t.pieces) for t in tensors], dim
    )


def _split(tensor: Symbolic, sizes: int | Sequence[int], dim: int = 0) -> tuple[Symbolic, ...]:
    dim %= tensor.ndim
    whole = tensor.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
    inner = math.prod(tensor.shape[dim + 1 :])
    parts, start = [], 0
    for size in sizes:
        blocks = (_stretch(b, start * inner, (start + size) * inner) for b in _blocks(tensor, dim))
        shape = (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
        parts.append(Symbolic(tensor.dtype, shape, _joined(p for block in blocks for p in block)))
        start += size
    return tuple(parts)


def _unbind(tensor: Symbolic, dim: int = 0) -> tuple[Symbolic, ...]:
    return tuple(part.squeeze(dim) for part in _split(tensor, 1, dim))


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same stretches, neighbours in one tensor made one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and (last.donor, last.tensor, last.stop) == (
            piece.donor,
            piece.tensor,
            piece.start,
        ):
            joined[-1] = Piece(last.donor, last.tensor, last.start, piece.stop)
        else:
            joined.append(piece)
    return tuple(joined)
