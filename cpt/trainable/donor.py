"""Train `donor`: what one donor gave to the slots."""

from __future__ import annotations

from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors
from hybridize.errors import HybridizeError, did_you_mean

TITLE = "what one donor gave to the slots: its layers, and modules swapped in from it"
VALUE = "the name of a donor"


def names(stack: ModelTensors, value: Any) -> list[str]:
    """Bridges belong to no donor, nor do bridging layers.

    Raises:
        HybridizeError: no slot holds anything of a donor of this name.
    """
    inside = [tensor for tensor in stack.tensors if tensor.role == "slot"]
    known = sorted({tensor.donor for tensor in inside if tensor.donor is not None})
    if not known:
        raise HybridizeError(
            "this model's folder does not say which donors its slots are from",
            fix="name the slots: slots: 0-3",
        )
    if value not in known:
        raise HybridizeError(
            f"no slot holds anything of a donor {value!r:.60}",
            fix=did_you_mean(str(value), known),
        )
    return stack.names(lambda tensor: tensor.role == "slot" and tensor.donor == value)
