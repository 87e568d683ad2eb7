"""What a build cannot copy: tensors of another dtype, and bridges (torch side)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from hybridize.assembler.stack import Bridge
from hybridize.errors import HybridizeError
from hybridize.plugins import load_plugin

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool,
}  # fmt: skip
CHUNK = 1 << 22  # elements


def fill(
    file: Path, outputs: list[dict[str, Any]], bridges: Mapping[str, dict[str, Any]]
) -> dict[str, str]:
    """Fill the holes that the copying process left in a shard.

    Args:
        file: the shard; it has its final size.
        outputs: name, dtype, shape, offset, and either ranges of donors' files or init.
        bridges: fields of each bridge, by place.

    Returns:
        BLAKE3 hash of each tensor, by name.
    """
    descriptor = os.open(file, os.O_WRONLY)
    try:
        initial = {
            where: _initial(Bridge(**fields))
            for where, fields in bridges.items()
            if any(output["init"] and output["init"][0] == where for output in outputs)
        }
        return {
            output["name"]: _write_cast(descriptor, output)
            if output["ranges"]
            else _write_made(descriptor, output, initial)
            for output in outputs
        }
    finally:
        os.close(descriptor)


def _initial(bridge: Bridge) -> dict[str, torch.Tensor]:
    """Parameters of a bridge by name, the same under any number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # decompositions round by how they are shared
    try:
        found: dict[str, torch.Tensor] = load_plugin("bridges", bridge.kind).initial(bridge)
        return found
    finally:
        torch.set_num_threads(threads)


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


def _write_made(
    descriptor: int, output: Mapping[str, Any], initial: Mapping[str, Mapping[str, torch.Tensor]]
) -> str:
    where, parameter = output["init"]
    digest = blake3()
    if where in initial:
        value = initial[where][parameter]
    else:  # an adapter of a swapped module: as a linear bridge, of its own place
        width_out, width_in = output["shape"]
        adapter = Bridge(output["name"], "linear", "random", width_in, width_out, False, False, 0)
        value = _initial(adapter)["proj.weight"]
    _write(descriptor, value.to(TORCH[output["dtype"]]), output["offset"], digest)
    return digest.hexdigest()


def _write(descriptor: int, values: torch.Tensor, at: int, digest: Any) -> int:
    data = memoryview(values.contiguous().view(-1).view(torch.uint8).numpy().data)
    digest.update(data)
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
    return at
