"""What a token costs in each part of a model, counted from shapes and config.

Multiply-adds of weights are exact: a matrix does one for each of its elements and each token that
passes through it. Norms, biases, activations, the recurrences of state spaces and linear attention,
and whatever stands beside the stack, are left out: they cost little beside the matrices.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors, Tensor
from hybridize.model.anatomy import WIDTH_KEYS

HEADS = ("num_attention_heads", "n_head", "n_heads", "attention_heads")
ACTIVE = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k",
    "top_k_experts", "experts_per_token",
)  # fmt: skip
NO_ATTENTION = re.compile(r"linear|conv|mamba|recurrent|moe|mlp")  # kinds of layer in configs

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_KEYS = re.compile(
    r"(^|\.)(self_attn|attn|attention|self_attention)\.(?!enter\.|leave\.)|"
    r"(^|\.)(mixer|temporal_block)\.(.*\.)?k_proj\."
)


@dataclass(frozen=True)
class Matrix:
    """A weight that tokens are multiplied with, and the share of them that pass through it."""

    tensor: Tensor
    share: float

    @property
    def macs(self) -> float:
        """Multiply-adds for a token."""
        return self.tensor.numel * self.share

    @property
    def outputs(self) -> float:
        """Elements that it gives for a token."""
        return self.macs / self.tensor.shape[-1]

    @property
    def inputs(self) -> float:
        """Elements that it reads of a token."""
        is_conv = self.tensor.shape[-2] == 1 and len(self.tensor.shape) == 3
        return self.outputs if is_conv else self.macs / self.tensor.shape[-2]


@dataclass(frozen=True)
class Part:
    """One step of the forward pass: a slot, a bridge, the head, or what stands before and after.

    Attributes:
        position: as `ModelTensors.position` counts.
        scores: multiply-adds for a token between queries, keys and values.
        width: of the stream that it reads.
    """

    position: tuple[int, int]
    tensors: tuple[Tensor, ...]
    matrices: tuple[Matrix, ...]
    scores: float
    width: int

    @property
    def is_slot(self) -> bool:
        return any(tensor.slot is not None for tensor in self.tensors)

    @property
    def macs(self) -> float:
        """Multiply-adds of its matrices for a token."""
        return sum(matrix.macs for matrix in self.matrices)


@dataclass(frozen=True)
class Flops:
    """FLOPs for one token."""

    forward: float
    again: float  # the forward passes that checkpointing repeats
    activations: float  # backward to activations: above what learns lowest, and nowhere else
    weights: float  # gradients of the matrices that learn

    @property
    def total(self) -> float:
        return self.forward + self.again + self.activations + self.weights


def parts(stack: ModelTensors, length: int) -> list[Part]:
    """All parts of a model, in the order of its forward pass.

    Args:
        length: tokens of a sequence, taken to be one document.
    """
    groups = groupby(stack.tensors, key=stack.position)
    found = [_part(stack, position, list(group), length) for position, group in groups]
    if stack.tied:  # the matrix stands at the beginning, and is multiplied with at the end
        head = [tensor for tensor in stack.tensors if tensor.role == "embeddings"]
        matrices = tuple(Matrix(t, 1.0) for t in head if len(t.shape) == 2)
        found.append(Part((stack.depth, 3), tuple(head), matrices, 0.0, stack.width))
    return found


def flops_of(
    found: Sequence[Part],
    learns: Collection[str],
    *,
    checkpointing: bool = False,
    cached_prefix: bool = False,
) -> Flops:
    """FLOPs of one token when tensors of these names learn.

    Args:
        checkpointing: slots through which the backward pass goes run forward a second time.
        cached_prefix: what comes before anything learns need not run.

    Within the lowest slot that learns, all of the backward pass is counted: a little too much.
    """
    forward = again = activations = weights = 0.0
    below = False  # whether anything learns in the parts below
    for part in found:
        here = any(tensor.name in learns for tensor in part.tensors)
        if below or here or not cached_prefix:
            forward += 2 * (part.macs + part.scores)
        if below or (here and part.is_slot):
            activations += 2 * (part.macs + 2 * part.scores)  # of queries, keys, values: twice
            again += 2 * (part.macs + part.scores) if checkpointing and part.is_slot else 0.0
        weights += 2 * sum(m.macs for m in part.matrices if m.tensor.name in learns)
        below = below or here
    return Flops(forward, again, activations, weights)


def _part(
    stack: ModelTensors, position: tuple[int, int], tensors: list[Tensor], length: int
) -> Part:
    looked_up = position[0] < 0
    weights = [t for t in tensors if len(t.shape) > 1 and not t.name.endswith("A_log")]
    share = active_experts(stack, tensors)
    slot = tensors[0].slot
    config = stack.donor_config(None if slot is None else stack.donors[slot])
    return Part(
        position=position,
        tensors=tuple(tensors),
        matrices=()
        if looked_up
        else tuple(Matrix(t, share if _is_expert(t) else 1.0) for t in weights),
        scores=0.0 if slot is None else _scores(stack, slot, tensors, length),
        width=_first(config, WIDTH_KEYS) or stack.width,
    )


def active_experts(stack: ModelTensors, tensors: Sequence[Tensor]) -> float:
    """Share of a slot's experts that a token passes through; 1 where the config does not say.

    How many there are, the headers say: by numbers, or by the first dimension of fused ones.
    """
    experts = [tensor for tensor in tensors if _is_expert(tensor)]
    if not experts:
        return 1.0
    numbers = {match[1] for t in experts if (match := _EXPERT.search(t.name))}
    total = len(numbers) or experts[0].shape[0]
    active = _first(stack.donor_config(experts[0].donor), ACTIVE)
    return 1.0 if active is None else min(1.0, active / total)


def _is_expert(tensor: Tensor) -> bool:
    """One of several: by its number, or all fused, (experts, ., .); a convolution has (., 1, .)."""
    if _EXPERT.search(tensor.name):
        return True
    return tensor.slot is not None and len(tensor.shape) == 3 and tensor.shape[1] > 1


def _scores(stack: ModelTensors, slot: int, tensors: Sequence[Tensor], length: int) -> float:
    """Multiply-adds for a token with the keys and the values that it sees; 0 without attention."""
    kinds = stack.config.get("layer_types") or stack.config.get("layers_block_type")
    kind = str(kinds[slot]) if isinstance(kinds, list) and slot < len(kinds) else ""
    owner = next((t for t in tensors if _KEYS.search(t.inner)), None)
    if owner is None or NO_ATTENTION.search(kind):
        return 0.0
    config = stack.donor_config(owner.donor)
    heads = _first(config, HEADS)
    width = _first(config, WIDTH_KEYS) or stack.width
    if heads is None:
        return 2 * width * _seen(length, _window(config, kind))
    value = config.get("v_head_dim") or config.get("head_dim") or width / heads
    query = config.get("head_dim") or width / heads
    if "qk_nope_head_dim" in config:  # latent attention
        query = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    return heads * (query + value) * _seen(length, _window(config, kind))


def _window(config: Mapping[str, Any], kind: str) -> int | None:
    """Tokens that a layer looks back on; None: on all."""
    if kind and not kind.startswith(("sliding", "chunked")):
        return None
    if config.get("use_sliding_window") is False:
        return None
    return _first(config, ("sliding_window", "attention_chunk_size"))


def _seen(length: int, window: int | None) -> float:
    """Tokens that one sees on average, itself included, looking back on `window` at most."""
    if window is None or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)


def _first(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    return next((v for k in keys if isinstance(v := config.get(k), int) and v > 0), None)
