"""Places in a model's stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class State:
    """A place in a model's stream: what arrives at a slot, or at a module within it, or leaves it.

    `slot` is a layer where the model is a donor alone; that after the last one is the final norm.
    """

    slot: int
    module: str | None = None  # a child of the layer: self_attn
    side: Literal["in", "out"] = "in"
