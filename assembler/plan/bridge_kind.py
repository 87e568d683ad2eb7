"""What a kind of bridge is: a file of `assembler/bridges`, named after the kind.

The file is a module that fits this protocol, and nothing else names the kind, apart from the class
that computes it in `runtime/bridges.py`. No torch: what needs it imports it inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from hybridize.plugins import load_plugin

if TYPE_CHECKING:
    from torch import Tensor

    from hybridize.assembler.plan.stack import Bridge
    from hybridize.model.anatomy import Layer
    from hybridize.torch_model.regression import Affine


class BridgeKind(Protocol):
    """A kind of bridge.

    Attributes:
        NEEDS_EQUAL_WIDTHS: it cannot lead from one width to another.
        AROUND_MODULES: it makes sense inside a layer, before and behind a swapped module.
        LAYER: it brings a decoder layer, which takes a slot of its own. Such a kind has
            `obstacle`, too.
    """

    NEEDS_EQUAL_WIDTHS: bool
    AROUND_MODULES: bool
    LAYER: bool

    def options(self, bridge: Bridge) -> dict[str, Any]:
        """What the runtime makes the bridge of, as it stands in config.json."""

    def shapes(self, bridge: Bridge) -> Mapping[str, tuple[int, ...]]:
        """Parameters by name, as the runtime's module has them."""

    def initial(self, bridge: Bridge) -> dict[str, Tensor]:
        """Parameters that no text has a part in, in fp32."""

    def closest(self, bridge: Bridge, affine: Affine, moment: Tensor) -> Affine:
        """The map of this kind that is closest to an affine one.

        Args:
            moment: covariance of the inputs, (width in, width in).
        """

    def parameters(self, bridge: Bridge, affine: Affine) -> dict[str, Tensor]:
        """Parameters that make the bridge compute an affine map that `closest` gave, in fp32."""

    def obstacle(self, layer: Layer, model_type: str) -> str | None:
        """Why a copy of a layer would not begin as nothing, if it would not (LAYER alone)."""


def bridge_kind(name: str) -> BridgeKind:
    """A kind by its name.

    Raises:
        HybridizeError: there is none of that name.
    """
    return cast(BridgeKind, load_plugin("bridges", name))
