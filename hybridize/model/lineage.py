"""Do two donors share their basis, as a model and its fine-tunes do? Read from samples of weights.

No torch: a few thousand numbers of each donor are read from the files.
"""

from __future__ import annotations

import math
import statistics
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hybridize.model.checkpoint import BITS, TensorHeader
from hybridize.model.donors import Donor

TENSORS = 12  # compared, from the lowest layer to the highest
PIECES, LENGTH = 4, 256  # of each tensor: stretches of elements
# Models trained apart have cosines of 0.0 within 0.03; a fine-tune stays above 0.9, and even long
# continued pre-training leaves most of the direction.
RELATED = 0.5


@dataclass(frozen=True)
class Lineage:
    """How alike the weights of two donors are.

    Attributes:
        cosine: median over the tensors compared, of same name, layer and shape; None where there
            are none, or where only headers are on this machine.
    """

    one: str
    other: str
    cosine: float | None
    num_tensors: int

    @property
    def related(self) -> bool:
        return self.cosine is not None and self.cosine >= RELATED

    def __str__(self) -> str:
        pair = f"{self.one} and {self.other}"
        if not self.num_tensors:
            return f"{pair}: no weights of the same name and shape"
        if self.cosine is None:
            return f"{pair}: unknown until their weights are on this machine"
        verdict = "one basis" if self.related else "strangers"
        cosine = round(self.cosine, 2) + 0.0  # no "-0.00"
        return f"{pair}: {verdict} (cosine {cosine:.2f} over {self.num_tensors} tensors)"


class Lineages:
    """Pairs of donors, compared when somebody asks, each once."""

    def __init__(self, donors: Mapping[str, Donor]) -> None:
        self._donors = donors
        self._found: dict[frozenset[str], Lineage] = {}

    def related(self, one: str, other: str) -> bool:
        """Whether two donors share their basis; a donor does with itself."""
        if one == other:
            return True
        pair = frozenset((one, other))
        if pair not in self._found:
            self._found[pair] = compare(self._donors[one], self._donors[other])
        return self._found[pair].related

    @property
    def compared(self) -> tuple[Lineage, ...]:
        return tuple(self._found.values())


def compare(one: Donor, other: Donor) -> Lineage:
    """Compare samples of matrices that have the same name and shape in the same layer of both."""
    pairs = _pairs(one, other)
    cosines = [c for a, b in pairs if (c := _cosine(_sample(a), _sample(b))) is not None]
    median = statistics.median(cosines) if cosines else None
    return Lineage(one.name, other.name, median, len(pairs))


def _pairs(one: Donor, other: Donor) -> list[tuple[TensorHeader, TensorHeader]]:
    """Matrices alone: norms of all models resemble each other, being near one."""
    found = [
        (tensor, twin)
        for a, b in zip(one.anatomy.layers, other.anatomy.layers, strict=False)
        for name, tensor in a.tensors.items()
        if (twin := b.tensors.get(name)) is not None
        and len(tensor.shape) > 1
        and tensor.shape == twin.shape
        and {tensor.dtype, twin.dtype} <= _DECODE.keys()
    ]
    step = max(1, len(found) // TENSORS)
    return found[::step][:TENSORS]


def _sample(tensor: TensorHeader) -> list[float]:
    length = min(LENGTH, tensor.numel)
    item = BITS[tensor.dtype] // 8
    step = max(length, (tensor.numel - length) // max(1, PIECES - 1))
    values: list[float] = []
    with tensor.file.open("rb") as stream:
        for at in range(0, tensor.numel - length + 1, step):
            stream.seek(tensor.start + at * item)
            values += _DECODE[tensor.dtype](stream.read(length * item))
    return values


def _decode_bfloat16(data: bytes) -> Sequence[float]:
    halves = struct.unpack(f"<{len(data) // 2}H", data)
    words = struct.pack(f"<{len(halves)}I", *(half << 16 for half in halves))
    return struct.unpack(f"<{len(halves)}f", words)


_DECODE: dict[str, Callable[[bytes], Sequence[float]]] = {
    "F32": lambda data: struct.unpack(f"<{len(data) // 4}f", data),
    "F16": lambda data: struct.unpack(f"<{len(data) // 2}e", data),
    "BF16": _decode_bfloat16,
}


def _cosine(one: Sequence[float], other: Sequence[float]) -> float | None:
    """None where either is nothing but zeros, as the files of a model of which only headers are
    here.
    """
    lengths = math.hypot(*one) * math.hypot(*other)
    if not lengths or not math.isfinite(lengths):
        return None
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths
