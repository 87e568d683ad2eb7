"""Bridge `identity`: nothing at all, where two donors share their basis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridize.assembler.bridges.linear import options

if TYPE_CHECKING:
    from torch import Tensor

    from hybridize.assembler.plan.stack import Bridge
    from hybridize.torch_model.regression import Affine

__all__ = ["closest", "initial", "options", "parameters", "shapes"]

NEEDS_EQUAL_WIDTHS = True
AROUND_MODULES = False
LAYER = False


def shapes(bridge: Bridge) -> dict[str, tuple[int, ...]]:
    """Parameters by name: none."""
    return {}


def initial(bridge: Bridge) -> dict[str, Tensor]:
    """Initial parameters: none."""
    return {}


def closest(bridge: Bridge, affine: Affine, moment: Tensor) -> Affine:
    """The map of this kind that is closest to an affine one: there is only the identity."""
    import torch

    weight = torch.eye(bridge.width_in).to(affine.weight)
    return type(affine)(weight, torch.zeros_like(affine.bias))


def parameters(bridge: Bridge, affine: Affine) -> dict[str, Tensor]:
    """Parameters that make the bridge compute an affine map: none."""
    return {}
