"""What a donor is made of, read from the names and shapes of its tensors alone.

The names are those on disk, in whatever layout the checkpoint was written (with or without a
base-model prefix, experts one by one or fused). The build asks transformers itself which parameter
each of them becomes; here they are only grouped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hybridize.architectures.defaults import class_default, text_type
from hybridize.architectures.native import NUM_LAYERS
from hybridize.errors import HybridizeError
from hybridize.model.checkpoint import Checkpoint, TensorHeader

PATTERN_KEYS = ("layer_types", "layers_block_type", "hybrid_override_pattern")  # one entry a layer
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim", "embedding_size")
MIXERS = (
    "self_attn", "attn", "attention", "self_attention", "linear_attn", "mamba", "mixer", "conv",
    "short_conv", "temporal_block", "temporal_mix", "gla",
)  # fmt: skip
MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "mlp_block", "moe", "shared_mlp")
_NUMBERED = re.compile(r"(.*?(?:^|\.))(0|[1-9]\d{0,8})\.(.+)$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|embeddings?|word_embeddings|tok_embeddings|"
    r"word_embedding|shared|embed|w)\.weight$"
)
_HEAD = re.compile(
    r"^(.*\.)?(lm_head|embed_out|output|head|output_layer|output_projection|unembed)"
    r"(\.\w+)?\.(weight|bias)$"
)
_NORM = re.compile(r"(^|[._])(norm\w*|ln_f|layer_?norm\w*|ln_out)(\.|$)", re.IGNORECASE)
_OTHER_TOWERS = re.compile(r"(^|\.)(visual|vision\w*|audio\w*|mtp\w*|vqmodel|multi_modal\w*)\.")
_LANGUAGE_MODEL = re.compile(r"(^|\.)(language_model|text_model|llm)\.")
# What trainers put beside a language model: a value, a reward, a class.
_OTHER_HEADS = re.compile(
    r"^(v_head|value_head|value_model|reward\w*|score|classifier|v_summary|summary|qa_outputs)\."
)


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
    others: tuple[TensorHeader, ...]  # of the base model, and none of the above
    left_out: tuple[TensorHeader, ...]  # no part of the language model: towers, heads for training
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
    if not isinstance(nested, dict):
        return config
    if "model_type" in nested:
        return nested
    return {"model_type": text_type(str(config.get("model_type"))), **nested}


def dissect(checkpoint: Checkpoint) -> Anatomy:
    """Group the tensors of a checkpoint.

    Raises:
        HybridizeError: depth or width are not in the config, or layers or embedding are not
            where a decoder has them.
    """
    place = str(checkpoint.folder)
    config = text_config(checkpoint.config)
    depth, width = _depth(config), width_of(config)
    if depth is None or width is None:
        raise HybridizeError(
            f"config.json has no {'depth' if depth is None else 'width'} "
            f"({' or '.join(NUM_LAYERS if depth is None else WIDTH_KEYS)})",
            fix="is this a decoder language model of transformers?",
            place=place,
        )
    prefix, layers = _find_layers(checkpoint, depth)
    inside = {t.name for layer in layers for t in layer.tensors.values()}
    base = prefix.removesuffix(prefix.rstrip(".").rpartition(".")[2] + ".")
    rest = [t for t in checkpoint.tensors.values() if t.name not in inside]
    language = _of_language_model(checkpoint)
    if language is not checkpoint.tensors:  # Qianfan's embedding lies outside of its layers' base
        base = ""
    head = [t for t in rest if _is_head(t.name, language) and not _is_stray(t.name, "", prefix)]
    own = [
        t for t in rest if t not in head and t.name in language
        and not _is_stray(t.name, base, prefix)
    ]  # fmt: skip
    embedding = _find_embedding(own, place)
    norm = [t for t in own if len(t.shape) == 1 and _NORM.search(t.name)]
    known = {embedding.name, *(t.name for t in (*head, *norm))}
    return Anatomy(
        prefix=prefix,
        layers=tuple(layers),
        embedding=embedding,
        head=tuple(head),
        norm=tuple(norm),
        others=tuple(t for t in own if t.name not in known),
        left_out=tuple(t for t in rest if t not in own and t not in head),
        width=width,
        dtype=_main_dtype(checkpoint.tensors.values()),
    )


def left_out_in_words(anatomy: Anatomy) -> str:
    """Names of what no layer or head has, in groups: `vision_tower.* (40 tensors)`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for tensor in anatomy.left_out:
        groups[_group(tensor.name, anatomy.prefix)].append(tensor.name)
    return ", ".join(
        f"{group}.* ({len(names)} tensors)" if len(names) > 1 else names[0]
        for group, names in sorted(groups.items())
    )


def _group(name: str, prefix: str) -> str:
    if name.startswith(prefix):
        return prefix + name.removeprefix(prefix).split(".")[0]
    parts = name.split(".")
    return ".".join(parts[:2] if parts[0] in ("model", "transformer") else parts[:1])


def _is_head(name: str, language: Collection[str]) -> bool:
    """Whether a tensor is of the output head, and not of a numbered block or another tower."""
    if not _HEAD.search(name) or re.search(r"\.\d+\.", name):
        return False
    return name in language or name.startswith("lm_head.")


def _is_stray(name: str, base: str, prefix: str) -> bool:
    """Whether a tensor outside of the layers is no part of the language model.

    Args:
        base: what stands before the names of the base model.
        prefix: of the layers; those beyond the depth predict further tokens.
    """
    return bool(
        name.startswith(prefix)
        or not name.startswith(base)
        or _OTHER_TOWERS.search(name)
        or _OTHER_HEADS.search(name)
    )


def width_of(config: Mapping[str, Any]) -> int | None:
    """Width of the residual stream; None if the config does not say."""
    return _first(config, WIDTH_KEYS) or _default(config, WIDTH_KEYS)


def _depth(config: Mapping[str, Any]) -> int | None:
    patterns = (config.get(key) for key in PATTERN_KEYS)
    spelled = next((len(p) for p in patterns if isinstance(p, list | str) and p), None)
    # Nemotron-H writes its pattern alone; a multimodal config leaves out what is its class's.
    return _first(config, NUM_LAYERS) or spelled or _default(config, NUM_LAYERS)


def _default(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    return _first({k: class_default(str(config.get("model_type")), k) for k in keys}, keys)


def _first(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    values = (config.get(key) for key in keys)
    return next((v for v in values if type(v) is int and v > 0), None)


def _of_language_model(checkpoint: Checkpoint) -> Mapping[str, TensorHeader]:
    """Tensors among which the layers are: in a multimodal model often under a name of their own."""
    tensors = checkpoint.tensors
    if text_config(checkpoint.config) is checkpoint.config:
        return tensors
    return {n: t for n, t in tensors.items() if _LANGUAGE_MODEL.search(n)} or tensors


def _find_layers(checkpoint: Checkpoint, depth: int) -> tuple[str, list[Layer]]:
    """The numbered family of tensors that is as deep as the config says, and holds most bytes."""
    families: dict[str, dict[int, dict[str, TensorHeader]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in _of_language_model(checkpoint).items():
        match = _NUMBERED.match(name)
        if match and not _OTHER_TOWERS.search(name):
            families[match[1]][int(match[2])][match[3]] = tensor
    whole = {
        prefix: family
        for prefix, family in families.items()
        if len(family) >= depth and all(i in family for i in range(depth))
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
