"""Train `full`: everything, which is what a freeze policy is compared with."""

from __future__ import annotations

from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors

TITLE = "everything"
VALUE = ""


def names(stack: ModelTensors, value: Any) -> list[str]:
    return stack.names(lambda tensor: True)
