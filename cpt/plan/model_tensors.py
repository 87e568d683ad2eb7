"""A model folder as a freeze policy sees it: which tensors there are, where they stand, what for.

Read from config.json and safetensors headers alone; no torch, no weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hybridize.errors import HybridizeError
from hybridize.files.reading import State, states_of
from hybridize.files.staging import MANIFEST
from hybridize.model.anatomy import Anatomy, dissect, text_config
from hybridize.model.checkpoint import BITS, Checkpoint, TensorHeader, open_checkpoint
from hybridize.model.heads import has_head, is_tied, without_head
from hybridize.model.manifest import files_of, read_manifest

Role = Literal["embeddings", "slot", "bridge", "norm", "head", "other"]

HYBRID = "hybridize"  # model_type of what the runtime runs
HEAD = "head"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

_NORM = re.compile(r"(^|\.)(\w*norm\w*|ln|ln\d+|ln_\w+)\.(weight|bias)$", re.IGNORECASE)
# What lies among the weights and is no parameter, or one that its class never lets learn:
# balances of routers, masks and tables of old checkpoints, constants of activations.
_CONSTANT = re.compile(
    r"(^|\.)(\w*e_score_correction_bias|expert_bias|balancing_biases|tid2eid|layer_scalar|"
    r"slope_rate|(query|key|diagonal)_decay|inv_freq|masked_bias|attn\.bias|attention\.bias|act_fn\.(beta|eps))$"
)
_BRIDGE = re.compile(r"model\.bridges\.(\d+|head)\.")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_HEAD_WEIGHT = "lm_head.weight"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model.

    Attributes:
        name: as it is on disk. The model in memory has the same one, except where transformers
            renames while it loads: a native mixture of experts keeps its experts one by one on
            disk (`mlp.experts.0.up_proj.weight`) and fused in memory (`mlp.experts.gate_up_proj`),
            and a few types have another prefix or layout there (Nemotron-H, Mixtral). In a hybrid
            all names are the same.
        shape: row-major.
        dtype: as safetensors writes it: BF16, F32, ...
        role: "norm" is the final one alone; "other" stands beside the stack, before its layers
            (learned positions, say).
        slot: that it stands in; None outside of the slots, and for a bridge between two of them.
        donor: whose tensor it was; None for a bridge, and where the folder does not tell.
        is_norm: gain or bias of a normalization, wherever that stands.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    slot: int | None = None
    donor: str | None = None
    is_norm: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * BITS[self.dtype] // 8

    @property
    def can_learn(self) -> bool:
        """Whether it is a parameter of floating point, as far as name and dtype tell."""
        return self.dtype in FLOATS and _CONSTANT.search(self.name) is None

    @property
    def inner(self) -> str:
        """Its name within the slot; outside of slots, the whole name."""
        return self.name if self.slot is None else f".{self.name}".split(f".{self.slot}.", 1)[1]


@dataclass(frozen=True)
class ModelTensors:
    """A model's tensors in the order of its depth: embeddings first, head last.

    Attributes:
        donors: whose layer each slot holds; None where the folder does not tell.
        bridges: place -> the slot that it stands before, or in: `4`, `1.self_attn.enter`, `head`
            (before the final norm: the depth). Those without tensors are not here.
        made: slots that hold a bridging layer.
        tied: the head reads out with the embedding's matrix, which stands here once, as embeddings.
        width: of the stream that the embedding gives; a hybrid's slots may have others.
        vocabulary: rows of the embedding.
        config: of the language model; of a hybrid, its own, with the donors' inside.
        states: of all files of the folder, before they were read.
    """

    folder: Path
    tensors: tuple[Tensor, ...]
    donors: tuple[str | None, ...]
    bridges: Mapping[str, int]
    made: tuple[int, ...]
    tied: bool
    width: int
    vocabulary: int
    config: Mapping[str, Any] = field(repr=False)
    states: Mapping[Path, State | None] = field(default_factory=dict, repr=False)

    @property
    def depth(self) -> int:
        return len(self.donors)

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors)

    def names(self, wanted: Callable[[Tensor], bool]) -> list[str]:
        """Names of the tensors that are wanted and can learn, in the model's order."""
        return [tensor.name for tensor in self.tensors if tensor.can_learn and wanted(tensor)]

    def slot_names(self, slots: Collection[int]) -> list[str]:
        """All that can learn in some slots, what was swapped in and its bridges included."""
        return self.names(lambda tensor: tensor.slot in slots)

    def position(self, tensor: Tensor) -> tuple[int, int]:
        """Where it comes in a forward pass: (slot, 0) is the bridge before a slot, (slot, 1) the
        slot itself; embeddings and others come at -1, and at the depth head bridge, norm, head.
        """
        return _position(tensor, self.bridges, self.depth)

    def donor_config(self, donor: str | None) -> Mapping[str, Any]:
        """The language model's config that a tensor of a donor was made by."""
        donors = self.config.get("donors")
        if isinstance(donors, dict) and donor in donors:
            return text_config(donors[donor])
        return self.config

    @cached_property
    def by_name(self) -> Mapping[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}


def read_model_tensors(folder: Path) -> ModelTensors:
    """Read a model folder: a hybrid, or any decoder of transformers.

    Raises:
        HybridizeError: there is no model in the folder, or it does not have the parts of a decoder.
    """
    states = states_of(files_of(folder).values())
    checkpoint = open_checkpoint(folder)
    if checkpoint.config.get("model_type") == HYBRID:
        stack = _read_hybrid(checkpoint)
    else:
        stack = _read_native(checkpoint, dissect(checkpoint))
    return replace(stack, states=states)


def _read_native(checkpoint: Checkpoint, anatomy: Anatomy) -> ModelTensors:
    config = text_config(checkpoint.config)
    donors = _donors_of_build(checkpoint.folder, len(anatomy.layers))
    if not has_head(checkpoint, anatomy):
        place = str(checkpoint.folder)
        raise HybridizeError.of([without_head(checkpoint.folder.name, place)])
    tied = is_tied(checkpoint, anatomy)
    tensors = [_tensor(anatomy.embedding, "embeddings")]
    for layer in anatomy.layers:
        tensors += [
            _tensor(t, "slot", layer.index, donors[layer.index]) for t in layer.tensors.values()
        ]
    # Bloom has a norm behind its embedding: it comes before the slots, not after them.
    tensors += [_tensor(t, "other" if "emb" in t.name else "norm") for t in anatomy.norm]
    tensors += [_tensor(t, "head") for t in anatomy.head if not (tied and len(t.shape) == 2)]
    tensors += [_tensor(t, "other") for t in anatomy.others]
    return ModelTensors(
        folder=checkpoint.folder,
        tensors=_in_order(tensors, {}, len(donors)),
        donors=donors,
        bridges={},
        made=(),
        tied=tied,
        width=anatomy.width,
        vocabulary=anatomy.vocabulary,
        config=config,
    )


def _read_hybrid(checkpoint: Checkpoint) -> ModelTensors:
    config = checkpoint.config
    slots = config.get("slots")
    place, found = str(checkpoint.folder), checkpoint.tensors
    if not isinstance(slots, list) or not slots:
        raise HybridizeError("config.json of a hybrid without slots", place=place)
    inside = {int(match[1]) for name in found if (match := _LAYER.match(name))}
    embedding = found.get("model.embed_tokens.weight")
    if inside != set(range(len(slots))) or embedding is None:
        raise HybridizeError(
            "no token embedding among its tensors"
            if embedding is None
            else f"config.json says {len(slots)} slots, the tensors are of {len(inside)}",
            fix="copy the model again, whole",
            place=place,
        )
    # A copy on disk is passed over, as by loaders.
    tied = config.get("tie_word_embeddings") is True or _HEAD_WEIGHT not in found
    tensors = [
        _hybrid_tensor(t, config) for t in found.values() if not (tied and t.name == _HEAD_WEIGHT)
    ]
    bridges = _places(tensors, len(slots))
    return ModelTensors(
        folder=checkpoint.folder,
        tensors=_in_order(tensors, bridges, len(slots)),
        donors=tuple(slot["donor"] for slot in slots),
        bridges=bridges,
        made=tuple(i for i, slot in enumerate(slots) if slot.get("made")),
        tied=tied,
        width=embedding.shape[1],
        vocabulary=embedding.shape[0],
        config=config,
    )


def _hybrid_tensor(tensor: TensorHeader, config: Mapping[str, Any]) -> Tensor:
    name = tensor.name
    if match := _LAYER.match(name):
        return _slot_tensor(tensor, config["slots"][int(match[1])], int(match[1]), match[2])
    if _BRIDGE.match(name):
        return _tensor(tensor, "bridge")
    if name.startswith("model.embed_tokens."):
        return _tensor(tensor, "embeddings", donor=config.get("embeddings"))
    if name.startswith("model.norm."):
        return _tensor(tensor, "norm", donor=config.get("head"))
    if name.startswith("lm_head."):
        return _tensor(tensor, "head", donor=config.get("head"))
    parts = name.split(".")
    owner = parts[2] if parts[:2] == ["model", "donors"] and len(parts) > 2 else None
    return _tensor(tensor, "other", donor=owner)


def _slot_tensor(tensor: TensorHeader, slot: Mapping[str, Any], index: int, inner: str) -> Tensor:
    """A tensor of a slot: the host layer's, a swapped module's, or one of the bridges around it."""
    for path, swap in slot.get("swap", {}).items():
        if inner.startswith(f"{path}.module."):
            return _tensor(tensor, "slot", index, swap["donor"])
        if inner.startswith((f"{path}.enter.", f"{path}.leave.")):
            return _tensor(tensor, "bridge", index)
    return _tensor(tensor, "bridge" if slot.get("made") else "slot", index, slot["donor"])


def _tensor(
    tensor: TensorHeader, role: Role, slot: int | None = None, donor: str | None = None
) -> Tensor:
    is_norm = len(tensor.shape) == 1 and _NORM.search(tensor.name) is not None
    return Tensor(tensor.name, tensor.shape, tensor.dtype, role, slot, donor, is_norm)


def _places(tensors: Collection[Tensor], depth: int) -> dict[str, int]:
    """Places of the bridges that have tensors, and the slot before or in which each stands."""
    found: dict[str, int] = {}
    for tensor in tensors:
        if match := _BRIDGE.match(tensor.name):
            found[match[1]] = depth if match[1] == HEAD else int(match[1])
        elif tensor.role == "bridge" and (side := re.match(r".*?\.(enter|leave)\.", tensor.inner)):
            found[f"{tensor.slot}.{side[0].rstrip('.')}"] = tensor.slot or 0
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def _donors_of_build(folder: Path, depth: int) -> tuple[str | None, ...]:
    """Whose layers a native model holds, if hybridize built it: its config cannot say."""
    slots = read_manifest(folder)["slots"] if (folder / MANIFEST).is_file() else []
    return tuple(slot["donor"] for slot in slots) if len(slots) == depth else (None,) * depth


def _position(tensor: Tensor, bridges: Mapping[str, int], depth: int) -> tuple[int, int]:
    if tensor.slot is not None:
        return tensor.slot, 1
    if match := _BRIDGE.match(tensor.name):
        return bridges[match[1]], 0
    fixed = {"embeddings": (-1, 0), "other": (-1, 1), "norm": (depth, 1), "head": (depth, 2)}
    return fixed[tensor.role]


def _in_order(
    tensors: Collection[Tensor], bridges: Mapping[str, int], depth: int
) -> tuple[Tensor, ...]:
    """By depth, then by name: the order in files depends on how they were split into shards."""

    def key(tensor: Tensor) -> tuple[Any, ...]:
        words = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in tensor.name.split(".")]
        adapter = tensor.role == "bridge" and tensor.slot is not None
        return _position(tensor, bridges, depth), not adapter, words

    return tuple(sorted(tensors, key=key))
