"""Train `norms`: gains and biases of all normalizations."""

from __future__ import annotations

from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors

TITLE = "all norms: in slots, before the head, behind the embedding"
VALUE = ""


def names(stack: ModelTensors, value: Any) -> list[str]:
    """Those of bridges belong to `bridges`."""
    return stack.names(lambda tensor: tensor.is_norm and tensor.role != "bridge")
