"""What a donor is made of, read from the names and shapes of its tensors alone.

The names are those on disk, in whatever layout the checkpoint was written (with or without a
base-model prefix, experts one by one or fused). The build asks transformers itself which parameter
each of them becomes; here they are only grouped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hybridize.checkpoint import Checkpoint, TensorHeader
from hybridize.errors import HybridizeError

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
PATTERN_KEYS = ("layer_types", "layers_block_type", "hybrid_override_pattern")  # one entry a layer
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim", "embedding_size")
MIXERS = (
    "self_attn", "attn", "attention", "self_attention", "linear_attn", "mamba", "mixer", "conv",
    "short_conv", "temporal_block", "temporal_mix", "gla",
)  # fmt: skip
MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "mlp_block", "moe", "shared_mlp")
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|embeddings?|word_embeddings|tok_embeddings|"
    r"word_embedding|shared|embed)\.weight$"
)
_HEAD = re.compile(r"^(.*\.)?(lm_head|embed_out|output|head|output_layer)(\.\w+)?\.(weight|bias)$")
_NORM = re.compile(r"(^|[._])(norm\w*|ln_f|layer_?norm\w*|ln_out)(\.|$)", re.IGNORECASE)
_OTHER_TOWERS = re.compile(r"(^|\.)(visual|vision\w*|audio\w*|mtp\w*|vqmodel|multi_modal\w*)\.")


@dataclass(frozen=True)
class Layer:
    """One decoder layer: its tensors on disk by the name that they have inside the layer."""

    index: int
    tensors: dict[str, TensorHeader]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors.values())

    @property
    def children(self) -> list[str]:
        """First steps of the names: self_attn, mlp, input_layernorm, ..."""
        return list(dict.fromkeys(name.split(".")[0] for name in self.tensors))

    @property
    def mixers(self) -> list[str]:
        return [child for child in self.children if child in MIXERS]

    @property
    def mlps(self) -> list[str]:
        return [child for child in self.children if child in MLPS]

    def module(self, child: str) -> dict[str, TensorHeader]:
        """Tensors of one sub-module."""
        return {n: t for n, t in self.tensors.items() if n.split(".")[0] == child}


@dataclass(frozen=True)
class Anatomy:
    """A donor's tensors, grouped. Names within `embedding`, `norm`, ... are those on disk."""

    prefix: str  # of the layers: "model.layers."
    layers: tuple[Layer, ...]
    embedding: TensorHeader
    head: tuple[TensorHeader, ...]  # empty where the checkpoint has none (tied)
    norm: tuple[TensorHeader, ...]
    others: tuple[TensorHeader, ...]  # outside of the layers, and none of the above
    width: int
    dtype: str  # of most bytes, as safetensors writes it

    @property
    def base(self) -> str:
        """What stands before the names of the base model: `model.`, or nothing."""
        return self.prefix.removesuffix(self.prefix.rstrip(".").rpartition(".")[2] + ".")

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.embedding.shape[0]


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config: its own, or that inside a multimodal one."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) and not _depth(config) else config


def dissect(checkpoint: Checkpoint) -> Anatomy:
    """Group the tensors of a checkpoint.

    Raises:
        HybridizeError: depth or width are not in the config, or layers or embedding are not
            where a decoder has them.
    """
    place = str(checkpoint.folder)
    config = text_config(checkpoint.config)
    depth, width = _depth(config), _first(config, WIDTH_KEYS)
    if depth is None or width is None:
        raise HybridizeError(
            f"config.json has no {'depth' if depth is None else 'width'} "
            f"({' or '.join(DEPTH_KEYS if depth is None else WIDTH_KEYS)})",
            fix="is this a decoder language model of transformers?",
            place=place,
        )
    prefix, layers = _find_layers(checkpoint, depth)
    inside = {t.name for layer in layers for t in layer.tensors.values()}
    rest = [
        t
        for t in checkpoint.tensors.values()
        if t.name not in inside and not _OTHER_TOWERS.search(t.name)
        and not t.name.startswith(prefix)  # layers beyond the depth: heads that predict further
    ]  # fmt: skip
    head = [t for t in rest if _HEAD.search(t.name)]
    embedding = _find_embedding([t for t in rest if t not in head], place)
    norm = [t for t in rest if len(t.shape) == 1 and _NORM.search(t.name)]
    known = {embedding.name, *(t.name for t in (*head, *norm))}
    return Anatomy(
        prefix=prefix,
        layers=tuple(layers),
        embedding=embedding,
        head=tuple(head),
        norm=tuple(norm),
        others=tuple(t for t in rest if t.name not in known),
        width=width,
        dtype=_main_dtype(checkpoint.tensors.values()),
    )


def _depth(config: Mapping[str, Any]) -> int | None:
    patterns = (config.get(key) for key in PATTERN_KEYS)
    spelled = next((len(p) for p in patterns if isinstance(p, list | str) and p), None)
    return _first(config, DEPTH_KEYS) or spelled  # Nemotron-H writes its pattern alone


def _first(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    values = (config.get(key) for key in keys)
    return next((v for v in values if isinstance(v, int) and v > 0), None)


def _find_layers(checkpoint: Checkpoint, depth: int) -> tuple[str, list[Layer]]:
    """The numbered family of tensors that is as deep as the config says, and holds most bytes."""
    families: dict[str, dict[int, dict[str, TensorHeader]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in checkpoint.tensors.items():
        match = re.match(r"(.*?(?:^|\.))(\d+)\.(.+)$", name)
        if match and not _OTHER_TOWERS.search(name):
            families[match[1]][int(match[2])][match[3]] = tensor
    whole = {
        prefix: family for prefix, family in families.items() if family.keys() >= set(range(depth))
    }
    if not whole:
        found = ", ".join(f"{p}* with {len(f)}" for p, f in sorted(families.items())) or "none"
        raise HybridizeError(
            f"config.json says {depth} layers, the tensors say otherwise (numbered: {found})",
            fix="copy the checkpoint again, whole",
            place=str(checkpoint.folder),
        )
    prefix = max(
        whole,
        key=lambda p: sum(t.nbytes for layer in whole[p].values() for t in layer.values()),
    )
    return prefix, [Layer(i, whole[prefix][i]) for i in range(depth)]


def _find_embedding(rest: list[TensorHeader], place: str) -> TensorHeader:
    matrices = [t for t in rest if len(t.shape) == 2]
    named = [t for t in matrices if _EMBEDDING.search(t.name)]
    found = max(named, key=lambda t: t.nbytes, default=None)
    if found is None:
        raise HybridizeError(
            "no token embedding among its tensors",
            fix=f"matrices outside of the layers: {', '.join(t.name for t in matrices) or 'none'}",
            place=place,
        )
    return found


def _main_dtype(tensors: Iterable[TensorHeader]) -> str:
    size: dict[str, int] = defaultdict(int)
    for tensor in tensors:
        size[tensor.dtype] += tensor.nbytes
    return max(size, key=lambda dtype: (size[dtype], dtype))
