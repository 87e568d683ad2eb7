"""From donors' tensors on disk to the exact list of a hybrid's tensors, and checks of names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hybridize.architectures.residual import is_output
from hybridize.errors import HybridizeError
from hybridize.runtime.configuration_hybridize import HybridConfig, read_config
from hybridize.runtime.donor_parts import DonorParts
from hybridize.runtime.modeling_hybridize import HybridForCausalLM
from hybridize.torch_model.conversion import (
    DiskTensors,
    convert_names,
    convert_text_names,
    matches,
    meta_model,
    native_model,
)
from hybridize.torch_model.symbolic import Piece, Symbolic

# Mamba-like mixers compute with these in fp32, whatever the dtype of the model: in 16 bits the
# decay rates of neighbouring heads fall together.
DECAY_RATES = re.compile(r"\.(A_log|D)$")

HEAD_BIAS = "lm_head.bias"

#: Hybrid tensor name -> (donor, name in that donor's model in memory).
Origins = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class OutTensor:
    """One tensor of the hybrid.

    Attributes:
        name: as in the hybrid's safetensors files.
        dtype: safetensors dtype of the donor's tensor; if computed, that in which most of the
            embedding donor is kept.
        shape: row-major.
        pieces: their bytes, one after the other, are the tensor's; empty if it is computed while
            building.
        keep_fp32: transformers loads it in fp32 even when the model is loaded in 16 bits: a cast
            to 16 bits must leave it alone.
        zero: an output projection of a bridging layer; any other without pieces is a bridge's own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    keep_fp32: bool
    zero: bool = False


def hybrid_layout(
    config: dict[str, Any],
    donors: Mapping[str, DiskTensors],
    wholes: Mapping[str, dict[str, Any]] | None = None,
) -> list[OutTensor]:
    """The hybrid's tensors, in the order of its state dict.

    Args:
        config: content of the hybrid's config.json.
        donors: donor name -> what lies in its safetensors files.
        wholes: content of the config.json beside these files, of donors of which the hybrid has
            the language model's part only.

    Raises:
        HybridizeError: the runtime cannot take a donor apart; a tensor of a used part has no
            source, or a used part does not know a tensor that lies in it; shapes differ; or a
            conversion does more than move bytes.
    """
    hybrid_config = HybridConfig.from_dict(config)
    try:
        model = meta_model(lambda: HybridForCausalLM(hybrid_config))
        sources = {
            n: DonorTensors(n, hybrid_config, donors[n], (wholes or {}).get(n))
            for n in hybrid_config.donors
        }
    except NotImplementedError as error:  # the runtime's word for a donor that it cannot take apart
        raise HybridizeError(str(error)) from error
    origins = find_origins(hybrid_config, sources)
    _refuse_unused(hybrid_config, sources, origins)

    computed_dtype = sources[hybrid_config.embeddings].main_dtype
    keeps_fp32 = fp32_rule(model)
    tied = set(model.all_tied_weights_keys)
    layout = []
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        shape, keep = tuple(tensor.shape), keeps_fp32(name, tensor)
        if name not in origins:  # of a bridge
            layout.append(OutTensor(name, computed_dtype, shape, (), keep))
            continue
        donor, inner = origins[name]
        if name == HEAD_BIAS and not sources[donor].has(inner):  # as transformers starts it
            layout.append(OutTensor(name, computed_dtype, shape, (), keep, zero=True))
            continue
        source = sources[donor].tensor(inner)
        if _starts_at_zero(hybrid_config, name):
            layout.append(OutTensor(name, source.dtype, shape, (), keep, zero=True))
            continue
        if source.shape != shape:
            found, wanted = list(source.shape), list(shape)
            raise HybridizeError(
                f"donor {donor}: {inner} has shape {found}, but its config asks for {wanted}",
                fix="its config.json belongs to another model",
            )
        layout.append(OutTensor(name, source.dtype, shape, source.pieces, keep))
    return layout


def _starts_at_zero(config: HybridConfig, name: str) -> bool:
    """An output projection of a bridging layer."""
    match = re.match(r"model\.layers\.(\d+)\.(.+)", name)
    return bool(match and config.slots[int(match[1])].get("made") and is_output(match[2]))


Names = list[str]
Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]


def check_names(config: PreTrainedConfig, disk: DiskTensors) -> tuple[Names, Names, list[Mismatch]]:
    """Compare a native model folder's tensors with what its class will ask for.

    Returns:
        missing names, unexpected names, and (name, shape on disk, shape in the model) where the
        two differ; all three empty if `from_pretrained` would load the folder without remark.
    """
    model = native_model(config)
    found, unexpected = convert_names(model, "", disk)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ties = model.all_tied_weights_keys.items()
    known = set(found) | {a for a, b in ties if b in found} | {b for a, b in ties if a in found}
    optional = model._keys_to_ignore_on_load_missing
    missing = [name for name in state if name not in known and not matches(name, optional)]
    mismatched = [(n, t.shape, state[n]) for n, t in found.items() if t.shape != state[n]]
    return missing, sorted(unexpected), mismatched


def keep_fp32_names(config: PreTrainedConfig, disk: DiskTensors) -> list[str]:
    """Names on disk of a native model's tensors that transformers keeps in fp32."""
    model = native_model(config)
    state, keeps_fp32 = model.state_dict(), fp32_rule(model)
    found, _ = convert_names(model, "", disk)
    kept = (tensor for name, tensor in found.items() if keeps_fp32(name, state[name]))
    return sorted({piece.tensor for tensor in kept for piece in tensor.pieces})


class DonorTensors:
    """What one donor has on disk, under the names of its model in memory."""

    def __init__(
        self,
        name: str,
        config: HybridConfig,
        disk: DiskTensors,
        whole: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.parts = DonorParts(name, config.donor_config(name))
        shell = self.parts.shell
        files_config = read_config(whole) if whole else config.whole_donor_config(name)
        self.found, self.unexpected = convert_text_names(self.parts, files_config, disk)
        self.ties: dict[str, str] = shell.all_tied_weights_keys
        self._paths: dict[int, str] = {id(module): path for path, module in shell.named_modules()}
        elements: dict[str, int] = {}
        for dtype, shape in disk.values():
            elements[dtype] = elements.get(dtype, 0) + math.prod(shape)
        self.main_dtype = max(elements, key=elements.__getitem__)

    def path(self, module: nn.Module) -> str:
        """The name of one of the donor's modules."""
        return self._paths[id(module)]

    def has(self, name: str) -> bool:
        """Whether its files hold a tensor."""
        return name in self.found

    def tensor(self, name: str) -> Symbolic:
        """The source of one in-memory tensor; a tied one may lie on disk under its twin's name."""
        twins = [b for a, b in self.ties.items() if a == name]
        twins += [a for a, b in self.ties.items() if b == name]
        for candidate in (name, *twins):
            if candidate in self.found:
                return self.found[candidate]
        raise HybridizeError(
            f"donor {self.name} has no tensor for {name}",
            fix="its files are incomplete, or its config.json belongs to another model",
        )


def find_origins(config: HybridConfig, sources: Mapping[str, DonorTensors]) -> Origins:
    """Where each tensor of the hybrid that a donor provides comes from."""
    origins: Origins = {}

    def take(
        place: str, source: DonorTensors, module: nn.Module, without: Sequence[str] = ()
    ) -> None:
        left_out = tuple(f"{path}." for path in without)
        for inner in module.state_dict():
            if not inner.startswith(left_out):
                origins[f"{place}.{inner}"] = (source.name, f"{source.path(module)}.{inner}")

    first, last = sources[config.embeddings], sources[config.head]
    take("model.embed_tokens", first, first.parts.embedding)
    for index, slot in enumerate(config.slots):
        source, swaps = sources[slot["donor"]], slot.get("swap", {})
        take(f"model.layers.{index}", source, source.parts.layers[slot["layer"]], list(swaps))
        for path, swap in swaps.items():
            other = sources[swap["donor"]]
            module = other.parts.layers[swap["layer"]].get_submodule(swap["module"])
            take(f"model.layers.{index}.{path}.module", other, module)
    if last.parts.norm is not None:
        take("model.norm", last, last.parts.norm)
    take("lm_head", last, last.parts.head)
    for source in sources.values():  # what a donor computes with outside the parts taken
        base = source.parts.base
        taken = (source.parts.layers, source.parts.embedding, source.parts.norm)
        inside = [source.path(m).removeprefix(f"{source.path(base)}.") for m in taken if m]
        take(f"model.donors.{source.name}", source, base, inside)
    return origins


def _refuse_unused(
    config: HybridConfig, sources: Mapping[str, DonorTensors], origins: Origins
) -> None:
    """A tensor that lies in a used part, but that the part does not know, would be lost."""
    used = {(donor, name.rpartition(".")[0]) for donor, name in origins.values()}
    layers = [(slot["donor"], slot["layer"]) for slot in config.slots]
    for source in sources.values():
        numbers = {layer for donor, layer in layers if donor == source.name}
        inside = tuple(f"{source.path(source.parts.layers)}.{number}." for number in numbers)
        for name in sorted(source.unexpected):
            if (source.name, name.rpartition(".")[0]) in used or name.startswith(inside):
                raise HybridizeError(
                    f"donor {source.name} has a tensor {name} that its model class does not know",
                    fix="its config.json belongs to another model, or needs a newer transformers",
                )


def fp32_rule(model: PreTrainedModel) -> Callable[[str, torch.Tensor], bool]:
    """Whether transformers keeps a tensor in fp32 when the model is loaded in 16 bits."""
    patterns = (*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ()))
    regexes = [DECAY_RATES, *(re.compile(pattern.replace("*", ".*")) for pattern in patterns)]

    def keeps(name: str, tensor: torch.Tensor) -> bool:
        return tensor.dtype == torch.float32 or any(regex.search(name) for regex in regexes)

    return keeps
