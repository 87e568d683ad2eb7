"""Bridge `block`: the linear map, and a whole decoder layer of the deep donor's class behind it.

The layer is a copy of the one that follows, with its output projections at zero: it begins as
nothing, so that the bridge begins as the map alone and training has a real layer to bridge with. It
takes a slot of its own.

Source: Wu et al., "LLaMA Pro: Progressive LLaMA with Block Expansion" (2024).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hybridize.assembler.bridges.linear import closest, initial, parameters, shapes

if TYPE_CHECKING:
    from hybridize.assembler.anatomy import Layer

__all__ = ["closest", "initial", "is_output", "obstacle", "parameters", "shapes"]

NEEDS_EQUAL_WIDTHS = False
LAYER = True

# What writes into the residual stream, as the architectures of transformers call it.
_OUTPUT = re.compile(
    r"(^|\.)(o_proj|out_proj|dense|dense_bias|dense_4h_to_h|down_proj|down_proj_bias|c_proj|fc2|"
    r"fc_out|wo|w2|output_linear|linear_out)(\.|$)"
    r"|(^|\.)(mlp|experts)\.bias$"  # JetMoe
)
# Their layers multiply the stream, whatever their projections give.
_SCALES = frozenset({"beam", "doge", "gemma4_text", "gemma4_unified_text"})


def is_output(name: str) -> bool:
    """Whether a tensor, by its name within a layer, belongs to an output projection."""
    # A.X K2's norms hold small MLPs: behind zeros, zeros of theirs would never learn.
    return _OUTPUT.search(name) is not None and "layernorm." not in name


def obstacle(layer: Layer, model_type: str) -> str | None:
    """Why a copy of a layer would not begin as nothing, if it would not."""
    if model_type in _SCALES:
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
