"""Bridge `linear`: a map from one width to another, after an RMS norm if wanted."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from hybridize.assembler.stack import Bridge

NEEDS_EQUAL_WIDTHS = False


def shapes(bridge: Bridge) -> dict[str, tuple[int, ...]]:
    """Parameters by name; the map is (width out, width in), as `nn.Linear` keeps it."""
    found: dict[str, tuple[int, ...]] = {}
    if bridge.norm:
        found["norm.weight"] = (bridge.width_in,)
    found["proj.weight"] = (bridge.width_out, bridge.width_in)
    if bridge.bias:
        found["proj.bias"] = (bridge.width_out,)
    return found


def initial(bridge: Bridge) -> dict[str, Tensor]:
    """Initial parameters in fp32.

    `identity` is the rectangular identity: it drops or zero-fills the last dimensions. `random` is
    (semi-)orthogonal, so that it keeps lengths (up to those it must drop).
    """
    import torch

    proj = torch.empty(bridge.width_out, bridge.width_in)
    if bridge.init == "identity":
        torch.nn.init.eye_(proj)
    else:
        # Of the place, too: two bridges of one recipe are not to be twins. Not hash(), which is
        # salted; and torch's generator heeds 32 bits of its seed alone.
        seed = zlib.crc32(f"{bridge.seed} {bridge.where}".encode())
        generator = torch.Generator().manual_seed(seed)
        torch.nn.init.orthogonal_(proj, generator=generator)
    values = {name: torch.zeros(shape) for name, shape in shapes(bridge).items()}
    if bridge.norm:
        values["norm.weight"] = torch.ones(bridge.width_in)
    values["proj.weight"] = proj
    return values
