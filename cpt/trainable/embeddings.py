"""Train `embeddings`: the matrix of token embeddings."""

from __future__ import annotations

from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors

TITLE = "the token embedding (and with it the head, where the two are tied)"
VALUE = ""


def names(stack: ModelTensors, value: Any) -> list[str]:
    return stack.names(lambda tensor: tensor.role == "embeddings")
