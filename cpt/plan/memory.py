"""Memory that a run takes on one process, in bytes: exact for its state, rough for activations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hybridize.cpt.plan.costs import Part
from hybridize.cpt.plan.model_tensors import ModelTensors, Tensor
from hybridize.model.checkpoint import BITS

MOMENTS = {"adamw": 2, "sgd": 0}  # tensors that the optimizer keeps for each one that learns
# Elements that autograd keeps for each that a matrix gives: measured on Llama, Qwen3 and Mixtral
# layers with fused attention, 1.4 to 1.8; without fused kernels recurrent layers keep up to 5.
KEPT = 1.5
CHUNK = 1024  # positions whose logits are in memory at a time, if the vocabulary is not huge
LOGITS = 1 << 26  # numbers in such a chunk, at most


def head_positions(vocabulary: int) -> int:
    """Positions that are read out at a time."""
    return max(64, min(CHUNK, LOGITS // vocabulary))


@dataclass(frozen=True)
class Settings:
    """How the run is made; `forecast` explains them."""

    tokens: int
    batch_tokens: int
    length: int
    processes: int
    optimizer: str
    checkpointing: bool
    cached_prefix: bool
    sharded: bool
    trained_dtype: str
    at_once: int
    head_tokens: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one process, at the end of a backward pass."""

    parameters: float  # frozen ones in their dtype, trained ones as masters
    gradients: float
    moments: float
    activations: float  # a rough estimate
    logits: float  # an estimate: of one chunk, with all that its loss and gradients need

    @property
    def state(self) -> float:
        """What is there at all times."""
        return self.parameters + self.gradients + self.moments

    @property
    def total(self) -> float:
        return self.state + self.activations + self.logits


def memory_of(
    stack: ModelTensors, found: Sequence[Part], learns: Collection[str], settings: Settings
) -> Memory:
    """Memory when tensors of these names learn."""
    trained = sum(tensor.numel for tensor in stack.tensors if tensor.name in learns)
    frozen = sum(tensor.nbytes for tensor in stack.tensors if tensor.name not in learns)
    masters = trained * BITS[settings.trained_dtype] / 8
    share = 1 / settings.processes if settings.sharded else 1.0
    logits = _read_out(stack) * stack.vocabulary * min(settings.head_tokens, settings.at_once)
    return Memory(
        parameters=share * (frozen + masters),
        gradients=share * masters,
        moments=share * masters * MOMENTS[settings.optimizer],
        activations=_activations(stack, found, learns, settings),
        logits=float(logits),
    )


def _activations(
    stack: ModelTensors, found: Sequence[Part], learns: Collection[str], settings: Settings
) -> float:
    """Bytes that autograd keeps for the backward pass: a rough estimate.

    For each slot from the first one that learns upwards, and each token: KEPT elements for each
    that a matrix gives, and the inputs of matrices that learn. With checkpointing the inputs of
    these slots, and the one slot that is being repeated. In a 16-bit model also the copies that
    matrices which learn multiply by.
    """
    slots, below = [], False
    for part in found:
        below = below or any(tensor.name in learns for tensor in part.tensors)
        if below and part.is_slot:
            slots.append(part)
    kept = [_kept(part, learns) for part in slots]
    if settings.checkpointing and slots:
        kept = [*(float(part.width) for part in slots), max(kept)]
    size = _itemsize(stack.tensors)
    copies = sum(m.tensor.numel for p in found for m in p.matrices if m.tensor.name in learns)
    return sum(kept) * settings.at_once * size + (size * copies if size < 4 else 0)


def _read_out(stack: ModelTensors) -> float:
    """Bytes of a logit: itself, its log-softmax and its gradient in fp32; and in 16 bits what the
    matrix gives and gets.
    """
    size = _itemsize(stack.tensors)
    return 3 * 4 + (2 * size if size < 4 else 0)


def _kept(part: Part, learns: Collection[str]) -> float:
    """Elements for a token."""
    inputs = sum(m.inputs for m in part.matrices if m.tensor.name in learns)
    return KEPT * sum(matrix.outputs for matrix in part.matrices) + inputs


def _itemsize(tensors: Sequence[Tensor]) -> float:
    """Bytes of an element of the stream: of the dtype that most of the model is in."""
    size_of: dict[str, int] = {}
    for tensor in tensors:
        size_of[tensor.dtype] = size_of.get(tensor.dtype, 0) + tensor.nbytes
    return BITS[max(size_of, key=lambda dtype: (size_of[dtype], dtype))] / 8
