"""Train `head`: the output matrix."""

from __future__ import annotations

from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors
from hybridize.errors import HybridizeError

TITLE = "the matrix that reads out, without the norm before it"
VALUE = ""


def names(stack: ModelTensors, value: Any) -> list[str]:
    """Raises HybridizeError where the head is the embedding's matrix."""
    if stack.tied:
        raise HybridizeError(
            "this model's head is tied to its embedding",
            fix="write embeddings: that trains the matrix in both places",
        )
    return stack.names(lambda tensor: tensor.role == "head")
