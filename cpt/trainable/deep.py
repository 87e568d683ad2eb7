"""Train `deep`: the slots next to the head."""

from __future__ import annotations

from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors
from hybridize.cpt.trainable._share import VALUE, number_of_slots

__all__ = ["TITLE", "VALUE", "names"]

TITLE = "the slots next to the head"


def names(stack: ModelTensors, value: Any) -> list[str]:
    return stack.slot_names(range(stack.depth - number_of_slots(stack, value), stack.depth))
