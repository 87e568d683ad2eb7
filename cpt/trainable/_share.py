"""A number of slots, given as it is or as a share of all."""

from __future__ import annotations

import math
from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors
from hybridize.errors import HybridizeError

VALUE = "a share of the slots, such as 0.25, or a number of slots, such as 4"


def number_of_slots(stack: ModelTensors, value: Any) -> int:
    """How many slots a value asks for: at least one; a share is rounded to the nearest number.

    Raises:
        HybridizeError: it is neither a share between 0 and 1 nor a number from 1 to the depth.
    """
    if isinstance(value, float) and 0 < value < 1:
        return max(1, math.floor(value * stack.depth + 0.5))
    if type(value) is int and 1 <= value <= stack.depth:
        return value
    raise HybridizeError(
        f"{value!r:.40} is neither a share of the slots nor a number of them",
        fix=f"a share lies between 0 and 1, such as 0.25; a number is whole and at most "
        f"{stack.depth}, the depth of this model",
    )
