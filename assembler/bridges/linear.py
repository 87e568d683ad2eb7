"""Bridge `linear`: an affine map from one width to another, after an RMS norm if wanted."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from hybridize.assembler.plan.stack import Bridge
    from hybridize.torch_model.regression import Affine

NEEDS_EQUAL_WIDTHS = False
AROUND_MODULES = True
LAYER = False


def shapes(bridge: Bridge) -> dict[str, tuple[int, ...]]:
    """Parameters by name; the map is (width out, width in), as `nn.Linear` keeps it."""
    found: dict[str, tuple[int, ...]] = {}
    if bridge.norm:
        found["norm.weight"] = (bridge.width_in,)
    found["proj.weight"] = (bridge.width_out, bridge.width_in)
    if bridge.bias:
        found["proj.bias"] = (bridge.width_out,)
    return found


def options(bridge: Bridge) -> dict[str, Any]:
    """Widths, and whether there are a norm and a bias."""
    return {
        "kind": bridge.kind,
        "in": bridge.width_in,
        "out": bridge.width_out,
        "norm": bridge.norm,
        "bias": bridge.bias,
    }


def initial(bridge: Bridge) -> dict[str, Tensor]:
    """Parameters that no text has a part in, in fp32.

    `identity` is the rectangular identity: it drops or zero-fills the last dimensions. `random` is
    (semi-)orthogonal, so that it keeps lengths (up to those it must drop).
    """
    import torch

    values = {name: torch.zeros(shape) for name, shape in shapes(bridge).items()}
    if bridge.norm:
        values["norm.weight"] += 1
    if bridge.init == "random":
        torch.nn.init.orthogonal_(values["proj.weight"], generator=generator(bridge))
    else:
        torch.nn.init.eye_(values["proj.weight"])
    return values


def generator(bridge: Bridge) -> torch.Generator:  # type: ignore[name-defined]  # noqa: F821
    """Of the seed and the place: two bridges of one recipe are not to be twins."""
    import torch

    # Not hash(), which is salted; and torch's generator heeds 32 bits of its seed alone.
    return torch.Generator().manual_seed(zlib.crc32(f"{bridge.seed} {bridge.where}".encode()))


def closest(bridge: Bridge, affine: Affine, moment: Tensor) -> Affine:
    """The map of this kind that is closest to an affine one: itself."""
    return affine


def parameters(bridge: Bridge, affine: Affine) -> dict[str, Tensor]:
    """Parameters that make the bridge compute an affine map, in fp32."""
    values = initial(bridge)
    values["proj.weight"] = affine.weight.float()
    if bridge.bias:
        values["proj.bias"] = affine.bias.float()
    return values
