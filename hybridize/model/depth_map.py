"""The depth map of a model: what stands at each depth, and how large it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hybridize.architectures.refused import refusal, wrapper_refusal
from hybridize.console import count, size
from hybridize.errors import Finding, HybridizeError
from hybridize.model.anatomy import Anatomy, Layer, dissect, left_out_in_words, text_config
from hybridize.model.checkpoint import Checkpoint
from hybridize.model.heads import has_head, is_tied
from hybridize.model.layer_table import Row, layer_table
from hybridize.model.soundness import contradictions, unsound


@dataclass(frozen=True)
class DepthMap:
    """One model, layer by layer."""

    name: str
    checkpoint: Checkpoint
    anatomy: Anatomy

    @property
    def config(self) -> dict[str, Any]:
        return dict(text_config(self.checkpoint.config))

    @property
    def refused(self) -> str | None:
        """Why it cannot be a donor; None if it can."""
        found = [
            *unsound(self.checkpoint),
            *contradictions(self.checkpoint, self.anatomy),
        ]
        reasons = [f"it {finding.found}" for finding in found]
        whole = self.checkpoint.config
        if "text_config" in whole and (reason := wrapper_refusal(str(whole.get("model_type")))):
            reasons.append(reason)
        if reason := refusal(str(self.config.get("model_type")), self.config):
            reasons.append(reason)
        return "; ".join(reasons) or None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "layer": layer.index,
                "mixer": mixer_of(self.config, layer),
                "mlp": mlp_of(layer),
                "width": self.anatomy.width,
                "parameters": layer.num_parameters,
                "bytes": layer.nbytes,
            }
            for layer in self.anatomy.layers
        ]

    def as_dict(self) -> dict[str, Any]:
        anatomy = self.anatomy
        return {
            "model": self.name,
            "model_type": self.config.get("model_type"),
            "width": anatomy.width,
            "vocabulary": anatomy.vocabulary,
            "dtype": anatomy.dtype,
            "tied": is_tied(self.checkpoint, anatomy),
            "has_head": has_head(self.checkpoint, anatomy),
            "parameters": self.checkpoint.num_parameters,
            "bytes": self.checkpoint.nbytes,
            "refused": self.refused,
            "embedding": anatomy.embedding.name,
            "norm": [tensor.name for tensor in anatomy.norm],
            "head": [tensor.name for tensor in anatomy.head],
            "others": [tensor.name for tensor in anatomy.others],
            "left_out": [tensor.name for tensor in anatomy.left_out],
            "layers": self.rows,
        }

    def table(self, *, full: bool = False) -> RenderableType:
        """Runs of equal layers as one row each; `full`: every layer."""
        table = layer_table(self._table_rows(), stack=False, full=full)
        return Group(table, Text(), Text(self._summary()))

    def _table_rows(self) -> Iterator[Row]:
        anatomy, width = self.anatomy, str(self.anatomy.width)
        embedding, head = anatomy.embedding, anatomy.head
        yield Row("", "embeddings", "", width, embedding.numel, embedding.nbytes)
        for layer in anatomy.layers:
            yield Row(
                "",
                mixer_of(self.config, layer, short=True),
                mlp_of(layer),
                width,
                layer.num_parameters,
                layer.nbytes,
                slots=(layer.index, layer.index),
                layers=(layer.index, layer.index),
            )
        numel, nbytes = sum(t.numel for t in head), sum(t.nbytes for t in head)
        tied = "head (tied)" if has_head(self.checkpoint, anatomy) else "no head"
        yield Row("", "head" if head else tied, "", width, numel, nbytes)

    def _summary(self) -> str:
        anatomy, model_type = self.anatomy, self.config.get("model_type")
        lines = [
            f"{self.name}: {model_type}, {len(anatomy.layers)} layers, width {anatomy.width}, "
            f"vocabulary {count(anatomy.vocabulary)}, {count(self.checkpoint.num_parameters)} "
            f"parameters, {anatomy.dtype}, {size(self.checkpoint.nbytes)}"
        ]
        if anatomy.others:
            names = ", ".join(tensor.name for tensor in anatomy.others[:5])
            lines.append(f"outside of the layers, too: {names}")
        if anatomy.left_out:
            lines.append(f"no part of the language model: {left_out_in_words(anatomy)}")
        if self.refused:
            lines.append(f"cannot be a donor: {self.refused}")
        return "\n".join(lines)


def depth_map(checkpoint: Checkpoint, name: str) -> DepthMap:
    """Read the depth map from the headers of a checkpoint.

    Raises:
        HybridizeError: it does not have the parts of a decoder.
    """
    try:
        return DepthMap(name, checkpoint, dissect(checkpoint))
    except HybridizeError:
        if found := unsound(checkpoint):  # which is why nothing stands where it should
            place = str(checkpoint.folder)
            raise HybridizeError.of(Finding(f"it {f.found}", f.fix, place) for f in found) from None
        raise


def mixer_of(
    config: Mapping[str, Any], layer: Layer, *, name: str | None = None, short: bool = False
) -> str:
    """Name of the mixer's module, with the kind that the config gives to this depth.

    Args:
        name: in the place of the module's.
        short: without the word attention, as a table has it: self_attn (sliding).
    """
    name = name or ", ".join(layer.mixers) or "-"
    kind = _kind(config, layer.index)
    if kind is None:
        return name
    return f"{name} ({kind.removesuffix('_attention') if short else kind})"


def _kind(config: Mapping[str, Any], index: int) -> str | None:
    """What the config says of the mixer of a layer, as transformers reads it."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(kinds, list):
        return str(kinds[index]) if index < len(kinds) else None
    # Gemma 3 and Cohere 2 as they were first published; their classes make the list of it.
    period = config.get("sliding_window_pattern")
    if isinstance(period, int) and period > 0:
        return "sliding_attention" if (index + 1) % period else "full_attention"
    return None


def mlp_of(layer: Layer) -> str:
    name = ", ".join(layer.mlps) or "-"
    experts = {
        part[part.index("experts") + 1]
        for part in (tensor.split(".") for tensor in layer.tensors)
        if "experts" in part[:-1]
    }
    numbered = [expert for expert in experts if expert.isdigit()]
    if numbered:
        return f"{name} ({len(numbered)} experts)"
    fused = [t.shape[0] for n, t in layer.tensors.items() if ".experts." in n and len(t.shape) == 3]
    return f"{name} ({fused[0]} experts)" if fused else name
