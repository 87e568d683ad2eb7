"""Which tensor of the result is made of which bytes, and in which file it will lie."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.files.ranges import Range
from hybridize.model.checkpoint import ALIGNMENT, BITS, SINGLE, write_header

ZEROS = "zeros"


@dataclass(frozen=True)
class Output:
    """One tensor of the result: bytes of donors one after another, or something computed."""

    name: str
    dtype: str  # as safetensors writes it
    shape: tuple[int, ...]
    donor: str | None  # whose it is; None: a bridge's
    ranges: tuple[Range, ...]  # in this order; empty: made by `init`
    init: tuple[str, str] | None = None  # (bridge, parameter of it), or (ZEROS, its own name)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BITS[self.dtype] // 8

    @property
    def copied(self) -> bool:
        """Whether the donor's bytes go over as they are."""
        return bool(self.ranges) and all(r.dtype == self.dtype for r in self.ranges)


@dataclass(frozen=True)
class Shard:
    """One safetensors file of the result."""

    name: str
    outputs: tuple[Output, ...]

    def header(self) -> bytes:
        return write_header((o.name, o.dtype, o.shape, o.nbytes) for o in self.outputs)

    def placed(self) -> list[tuple[Output, int]]:
        """Each output, and where its bytes begin in the file."""
        at, found = len(self.header()), []
        for output in self.outputs:
            found.append((output, at))
            at += output.nbytes
        return found

    def written(self, folder: Path) -> list[tuple[Output, Range]]:
        """Each output, and its bytes in the finished file."""
        file = folder / self.name
        return [(o, Range(file, at, o.nbytes, o.dtype, o.name)) for o, at in self.placed()]

    @property
    def nbytes(self) -> int:
        return len(self.header()) + sum(output.nbytes for output in self.outputs)


def lay_out(outputs: Sequence[Output], shard_size: int) -> list[Shard]:
    """Distribute tensors over files of at most `shard_size` bytes (more only for a single tensor).

    Within a file, tensors whose size is a multiple of `ALIGNMENT` come first, then those of a
    multiple of half of it, and so on: nearly all lie aligned when the file is mapped, and every one
    at a multiple of its item size.
    """
    groups: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if groups[-1] and size + output.nbytes > shard_size:
            groups.append([])
            size = 0
        groups[-1].append(output)
        size += output.nbytes
    count = len(groups)
    names = [SINGLE] if count == 1 else [
        f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)
    ]  # fmt: skip
    return [
        Shard(name, tuple(sorted(group, key=lambda o: -math.gcd(o.nbytes, ALIGNMENT))))
        for name, group in zip(names, groups, strict=True)
    ]


def index_json(shards: Iterable[Shard]) -> str | None:
    """Text of the index file; None where one file holds everything."""
    shards = list(shards)
    if len(shards) == 1:
        return None
    outputs = [(output, shard.name) for shard in shards for output in shard.outputs]
    index: dict[str, Any] = {
        "metadata": {"total_size": sum(output.nbytes for output, _ in outputs)},
        "weight_map": {
            output.name: name for output, name in sorted(outputs, key=lambda p: p[0].name)
        },
    }
    return json.dumps(index, indent=2) + "\n"
