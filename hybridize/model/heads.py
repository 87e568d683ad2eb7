"""Whether a model has an output head, and whether that is its embedding, as transformers loads it.

`from_pretrained` ties the two where the config says so, unless the files hold both and they differ.
An untied model without a head is given a random one: here it has none.
"""

from __future__ import annotations

from hybridize.architectures.defaults import ties_head
from hybridize.errors import Finding
from hybridize.model.anatomy import Anatomy, text_config
from hybridize.model.checkpoint import Checkpoint, TensorHeader, same_bytes


def ties(checkpoint: Checkpoint) -> bool:
    """Whether its config, or the default of its class, ties the head to the embedding."""
    return ties_head(checkpoint.config, text_config(checkpoint.config))


def has_head(checkpoint: Checkpoint, anatomy: Anatomy) -> bool:
    """Whether it can write a token."""
    return bool(matrices(anatomy)) or ties(checkpoint)


def is_tied(checkpoint: Checkpoint, anatomy: Anatomy) -> bool:
    """Whether head and embedding are one tensor.

    Where there are headers only, the config's word stands.
    """
    tied = matrices(anatomy)
    return ties(checkpoint) and all(same_bytes(t, anatomy.embedding) for t in tied)


def without_head(name: str, place: str) -> Finding:
    """For what asks a model without a head for its loss."""
    return Finding(
        f"'{name}' has no output head, and so no loss: there is none in its files, and its config "
        "does not tie it to the embedding",
        fix="use a checkpoint saved with its head (*ForCausalLM)",
        place=place,
    )


def matrices(anatomy: Anatomy) -> list[TensorHeader]:
    """Of the head's tensors those that may be tied to the embedding: CTRL has a bias beside it."""
    return [tensor for tensor in anatomy.head if len(tensor.shape) == 2]
