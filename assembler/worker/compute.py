"""What a build cannot copy: tensors of another dtype, and bridges (torch side)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load_file

from hybridize.assembler.fit.hybrid_with_donors import initial
from hybridize.assembler.plan.stack import Bridge
from hybridize.errors import HybridizeError
from hybridize.model.shards import ZEROS
from hybridize.torch_model.reader import TORCH

CHUNK = 1 << 22  # elements


def fill(
    file: Path,
    outputs: list[dict[str, Any]],
    bridges: Mapping[str, Bridge],
    fitted: Path | None = None,
) -> dict[str, str]:
    """Fill the holes that the copying process left in a shard.

    Args:
        file: the shard; it has its final size.
        outputs: name, dtype, shape, offset, and either ranges of donors' files or init.
        bridges: by their place.
        fitted: parameters of those that were fitted on text, as `fitting.run` writes them.

    Returns:
        BLAKE3 hash of each tensor, by name.
    """
    descriptor = os.open(file, os.O_WRONLY)
    try:
        made = _Made(bridges, fitted)
        return {
            output["name"]: _write_cast(descriptor, output)
            if output["ranges"]
            else _write_made(descriptor, output, made)
            for output in outputs
        }
    finally:
        os.close(descriptor)


class _Made:
    """Tensors that no donor has."""

    def __init__(self, bridges: Mapping[str, Bridge], fitted: Path | None) -> None:
        self.bridges = bridges
        self.fitted = load_file(fitted) if fitted else {}
        self._initial: dict[str, dict[str, torch.Tensor]] = {}

    def tensor(self, output: Mapping[str, Any]) -> torch.Tensor:
        where, name = output["init"]
        if where == ZEROS:
            return torch.zeros(output["shape"])
        if self.bridges[where].fitted:
            return self.fitted[f"{where}/{name}"]
        if where not in self._initial:
            self._initial[where] = initial(self.bridges[where])
        return self._initial[where][name]


def _write_cast(descriptor: int, output: Mapping[str, Any]) -> str:
    digest, at = blake3(), output["offset"]
    wanted = TORCH[output["dtype"]]
    for source in output["ranges"]:
        have = TORCH[source["dtype"]]
        with Path(source["file"]).open("rb") as stream:
            stream.seek(source["start"])
            left = source["nbytes"]
            while left:
                data = bytearray(stream.read(min(left, CHUNK * have.itemsize)))
                if not data:
                    raise HybridizeError(
                        f"tensor '{source['tensor']}' ends early: the file became shorter",
                        place=source["file"],
                    )
                left -= len(data)
                values = torch.frombuffer(data, dtype=have)
                cast = values.to(wanted)
                if wanted == torch.float16 and bool((cast.isinf() & ~values.isinf()).any()):
                    raise HybridizeError(
                        f"tensor '{source['tensor']}' has values beyond the range of float16",
                        fix="write dtype: bfloat16",
                        place=source["file"],
                    )
                at = _write(descriptor, cast, at, digest)
    return digest.hexdigest()


def _write_made(descriptor: int, output: Mapping[str, Any], made: _Made) -> str:
    digest = blake3()
    value = made.tensor(output).to(TORCH[output["dtype"]])
    _write(descriptor, value, output["offset"], digest)
    return digest.hexdigest()


def _write(descriptor: int, values: torch.Tensor, at: int, digest: Any) -> int:
    data = memoryview(values.contiguous().view(-1).view(torch.uint8).numpy().data)
    digest.update(data)
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
    return at
