"""Bridge `block`: the linear map, and a whole decoder layer of the deep donor's class behind it.

The layer is a copy of the one that follows, with its output projections at zero: it begins as
nothing, so that the bridge begins as the map alone and training has a real layer to bridge with. It
takes a slot of its own.

Source: Wu et al., "LLaMA Pro: Progressive LLaMA with Block Expansion" (2024).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridize.architectures.families import family
from hybridize.architectures.residual import is_output
from hybridize.assembler.bridges.linear import closest, initial, options, parameters, shapes

if TYPE_CHECKING:
    from hybridize.model.anatomy import Layer

__all__ = ["closest", "initial", "obstacle", "options", "parameters", "shapes"]

NEEDS_EQUAL_WIDTHS = False
AROUND_MODULES = False
LAYER = True


def obstacle(layer: Layer, model_type: str) -> str | None:
    """Why a copy of a layer would not begin as nothing, if it would not."""
    if family(model_type).scales_stream:
        return f"layers of type '{model_type}' scale the stream itself"
    if unknown := _modules_without_output(layer):
        return f"no output projection is known in its {' and '.join(unknown)}"
    return None


def _modules_without_output(layer: Layer) -> list[str]:
    """Mixers and MLPs."""
    found = [m for m in (*layer.mixers, *layer.mlps) if not any(map(is_output, layer.module(m)))]
    if not layer.mixers and not layer.mlps and not any(map(is_output, layer.tensors)):
        found.append("tensors")
    return found
