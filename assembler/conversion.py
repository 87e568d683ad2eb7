"""What `from_pretrained` would make of a donor's files: names in memory, and where each comes from.

transformers' own rename rules and conversions are run on symbolic tensors, so old and new key
layouts, per-expert keys, missing base-model prefixes and multimodal files come out as they would
be loaded. What a conversion does beyond moving bytes is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from hybridize.assembler.runtime.modeling_hybridize import Donor, causal_class
from hybridize.assembler.symbolic import NotBytewise, Symbolic
from hybridize.errors import HybridizeError

#: name on disk -> (safetensors dtype, shape)
DiskTensors = Mapping[str, tuple[str, tuple[int, ...]]]
#: name in memory -> its source
Sources = dict[str, Symbolic]

# Buffers that older versions saved; transformers passes over them in every model.
OLD_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")


def meta_model(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model without memory, in bfloat16: what is fp32 in it then is so by its class's will."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            return make()
    finally:
        torch.set_default_dtype(dtype)


def native_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The causal language model of a config, or of its text part, without memory."""
    text = config.get_text_config(decoder=True)
    return meta_model(lambda: causal_class(text)(text))


def convert_text_names(
    parts: Donor, whole_config: PreTrainedConfig, disk: DiskTensors
) -> tuple[Sources, set[str]]:
    """`convert_names` for a donor of which only the language model is used.

    The files of a multimodal model are read as that model's, and the names of its text part are
    then those of the text model alone.
    """
    shell, name = parts.shell, parts.name
    found, unexpected = convert_names(shell, name, disk)
    paths = {id(module): path for path, module in shell.named_modules()}
    embedded = any(tensor.startswith(f"{paths[id(parts.embedding)]}.") for tensor in found)
    whole_class: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(whole_config), None)
    if embedded or whole_class is None or type(whole_config) is type(shell.config):
        return found, unexpected

    whole: Any = meta_model(lambda: whole_class(whole_config))
    found, unexpected = convert_names(whole, name, disk)
    whole_paths = {id(module): path for path, module in whole.named_modules()}
    text = next(m for m in whole.modules() if type(m) is type(parts.base))
    places: dict[str, str] = {
        whole_paths[id(text)]: paths[id(parts.base)],
        whole_paths[id(whole.get_output_embeddings())]: paths[id(parts.head)],
    }

    def rename(tensor: str) -> str | None:
        for old, new in places.items():
            if tensor.startswith(f"{old}."):
                return new + tensor.removeprefix(old)
        return None

    text_found = {new: t for tensor, t in found.items() if (new := rename(tensor)) is not None}
    return text_found, {new for tensor in unexpected if (new := rename(tensor)) is not None}


def convert_names(
    model: PreTrainedModel, donor: str, disk: DiskTensors
) -> tuple[Sources, set[str]]:
    """What would be loaded into `model`, and under which names the rest would be reported.

    The steps are those of transformers' `convert_and_load_state_dict_in_model`.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix

    found: Sources = {}
    unexpected: set[str] = set()
    waiting: dict[str, tuple[WeightConverter, dict[str, list[Symbolic]]]] = {}
    for key in sorted(disk, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:  # an in-memory name that a rule hit by accident
            name, pattern = key, None
        source = Symbolic.whole(donor, key, *disk[key])
        if name not in state:
            unexpected.add(name)
        elif pattern is None:
            found[name] = source
        else:
            _, collected = waiting.setdefault(name, (by_pattern[pattern], {}))
            collected.setdefault(pattern, []).append(source)
    for name, (converter, collected) in waiting.items():
        found.update(_convert(model, converter, name, collected))
    ignored = (*(model._keys_to_ignore_on_load_unexpected or ()), *OLD_BUFFERS)
    return found, {name for name in unexpected if not matches(name, ignored)}


def _convert(
    model: PreTrainedModel,
    converter: WeightConverter,
    name: str,
    collected: dict[str, list[Symbolic]],
) -> Sources:
    """Run one conversion of transformers on symbolic tensors."""
    values: dict[str, Any] = collected
    for operation in converter.operations:
        values = _run(operation, values, converter, name, model)
    # As in `WeightConverter.convert`: the results are named by pattern, `name` has the rest.
    full = name.replace("*.", "0.")
    pattern = next((p for p in values if p in full), None)
    if pattern is not None:
        before, _, after = full.partition(pattern)
        values = {before + p + after: value for p, value in values.items()}
    return {n: value[0] if isinstance(value, list) else value for n, value in values.items()}


def _run(
    operation: ConversionOps,
    values: dict[str, Any],
    converter: WeightConverter,
    name: str,
    model: PreTrainedModel,
) -> dict[str, Any]:
    try:
        return operation.convert(
            values,
            source_patterns=converter.source_patterns,
            target_patterns=converter.target_patterns,
            full_layer_name=name,
            model=model,
            config=model.config,
            missing_keys=None,
        )
    except NotBytewise as error:
        raise HybridizeError(
            f"transformers loads {name} by {operation!r}, which does more than move bytes: {error}",
            fix="load the donor and save it anew: save_pretrained(..., save_original_format=False)",
        ) from error


def matches(name: str, patterns: Iterable[str] | None) -> bool:
    """Whether a name is among those that a model class says to pass over."""
    return any(re.search(pattern, name) for pattern in patterns or ())
