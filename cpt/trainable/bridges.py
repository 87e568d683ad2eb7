"""Train `bridges`: whatever was put between strangers."""

from __future__ import annotations

from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors
from hybridize.errors import HybridizeError

TITLE = "all bridges: between slots, around swapped modules, and bridging layers"
VALUE = ""


def names(stack: ModelTensors, value: Any) -> list[str]:
    """Raises HybridizeError on a model that has none: a policy of bridges alone trains nothing."""
    found = stack.names(lambda tensor: tensor.role == "bridge")
    if not found:
        raise HybridizeError(
            "this model has no bridges",
            fix="train slots: shallow, deep, mid, slots or donor; or build it with bridges "
            "(bridges: where: changes)",
        )
    return found
