"""The depth map of a model: what stands at each depth, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.assembler.anatomy import (
    Anatomy,
    Layer,
    dissect,
    left_out_in_words,
    text_config,
)
from hybridize.assembler.architectures import refusal
from hybridize.assembler.soundness import contradictions, unsound
from hybridize.checkpoint import Checkpoint
from hybridize.console import count, size
from hybridize.errors import Finding, HybridizeError


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
            "tied": not anatomy.head,
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

    def table(self) -> RenderableType:
        anatomy = self.anatomy
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("layer", "mixer", "mlp", "width", "parameters", "bytes"):
            table.add_column(heading, justify="left" if heading in ("mixer", "mlp") else "right")
        table.add_row(
            "", "embeddings", "", str(anatomy.width), count(anatomy.embedding.numel),
            size(anatomy.embedding.nbytes),
        )  # fmt: skip
        for row in self.rows:
            table.add_row(
                str(row["layer"]), row["mixer"], row["mlp"], str(row["width"]),
                count(row["parameters"]), size(row["bytes"]),
            )  # fmt: skip
        head = sum(t.numel for t in anatomy.head)
        table.add_row(
            "", "head" if head else "head (tied)", "", str(anatomy.width), count(head),
            size(sum(t.nbytes for t in anatomy.head)),
        )  # fmt: skip
        return Group(table, Text(), Text(self._summary()))

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


def mixer_of(config: dict[str, Any], layer: Layer) -> str:
    """Name of the mixer's module, with the kind that the config gives to this depth."""
    name = ", ".join(layer.mixers) or "-"
    kinds = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(kinds, list) and layer.index < len(kinds):
        return f"{name} ({kinds[layer.index]})"
    return name


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
