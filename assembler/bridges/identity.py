"""Bridge `identity`: nothing at all, where two donors share their basis."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from hybridize.assembler.stack import Bridge

NEEDS_EQUAL_WIDTHS = True


def shapes(bridge: Bridge) -> dict[str, tuple[int, ...]]:
    """Parameters by name: none."""
    return {}


def initial(bridge: Bridge) -> dict[str, Tensor]:
    """Initial parameters: none."""
    return {}
