"""What writes into the residual stream, by the names of modules in transformers. No torch."""

from __future__ import annotations

import re

# What writes into the residual stream, as the architectures of transformers call it.
_OUTPUT = re.compile(
    r"(^|\.)(o_proj|out_proj|dense|dense_bias|dense_4h_to_h|down_proj|down_proj_bias|c_proj|fc2|"
    r"fc_out|wo|w2|output_linear|linear_out)(\.|$)"
    r"|(^|\.)(mlp|experts)\.bias$"  # JetMoe
)


def is_output(name: str) -> bool:
    """Whether a tensor, by its name within a layer, belongs to an output projection."""
    # A.X K2's norms hold small MLPs: behind zeros, zeros of theirs would never learn.
    return _OUTPUT.search(name) is not None and "layernorm." not in name
