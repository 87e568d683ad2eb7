"""Train `mid`: slots in the middle of the stack."""

from __future__ import annotations

from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors
from hybridize.cpt.trainable._share import VALUE, number_of_slots

__all__ = ["TITLE", "VALUE", "names"]

TITLE = "the slots in the middle of the stack"


def names(stack: ModelTensors, value: Any) -> list[str]:
    """Where the rest is odd, the slot left over stays frozen above."""
    number = number_of_slots(stack, value)
    first = (stack.depth - number) // 2
    return stack.slot_names(range(first, first + number))
