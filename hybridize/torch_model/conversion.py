"""What `from_pretrained` would make of a donor's files: names in memory, and where each comes from.

transformers' own rename rules and conversions are run on symbolic tensors, so old and new key
layouts, per-expert keys, missing base-model prefixes and multimodal files come out as they would
be loaded. What a conversion does beyond moving bytes is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from hybridize.errors import HybridizeError
from hybridize.runtime.donor_parts import DonorParts, causal_class
from hybridize.torch_model.symbolic import NotBytewise, Symbolic

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
    parts: DonorParts, whole_config: PreTrainedConfig, disk: DiskTensors
) -> tuple[Sources, set[str]]:
    """`convert_names` for a donor of which only the language model is used.

    The files of a multimodal model are read as that model's, and the names of its text part are
    then those of the text model alone.
    """
    whole_class = _whole_class(whole_config)
    if whole_class is None or type(whole_config) is type(parts.shell.config):
        return convert_names(parts.shell, parts.name, disk)

    whole: Any = meta_model(lambda: whole_class(whole_config))
    text = next((m for m in whole.modules() if type(m) is type(parts.base)), None)
    head = _head_of(whole, parts)
    if text is None or head is None:
        parts.refuse(f"{type(whole).__name__} has another language model inside")
    inside = {id(module): f"{path}." for path, module in whole.named_modules()}
    alone = {id(module): f"{path}." for path, module in parts.shell.named_modules()}
    places = {
        inside[id(text)]: alone[id(parts.base)],
        inside[id(head)]: alone[id(parts.head)],
    }
    # What else there is would be converted in vain, and not all of it by moving bytes.
    found, unexpected = convert_names(whole, parts.name, disk, wanted=tuple(places))

    def renamed(tensor: str) -> Iterator[str]:
        return (
            new + tensor.removeprefix(old) for old, new in places.items() if tensor.startswith(old)
        )

    return (
        {new: source for tensor, source in found.items() for new in renamed(tensor)},
        {new for tensor in unexpected for new in renamed(tensor)},
    )


def _whole_class(config: PreTrainedConfig) -> Any:
    """The class of a multimodal model that writes text; None if there is none."""
    mappings: tuple[Any, ...] = (
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )
    return next((m[type(config)] for m in mappings if type(config) in m), None)


def _head_of(whole: Any, parts: DonorParts) -> Any:
    """The output head of a multimodal model: its own, or of the language model with one in it."""
    head = whole.get_output_embeddings()
    if head is not None:
        return head
    shells: Iterator[Any] = (m for m in whole.modules() if type(m) is type(parts.shell))
    return next((shell.get_output_embeddings() for shell in shells), None)


def convert_names(
    model: PreTrainedModel, donor: str, disk: DiskTensors, *, wanted: tuple[str, ...] = ("",)
) -> tuple[Sources, set[str]]:
    """What would be loaded into `model`, and under which names the rest would be reported.

    Args:
        wanted: beginnings of the names that are asked for; others are not converted.

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
        if name.startswith(wanted):
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
            fix="load and save the donor again: save_pretrained(..., save_original_format=False)",
        ) from error


def matches(name: str, patterns: Iterable[str] | None) -> bool:
    """Whether a name is among those that a model class says to pass over."""
    return any(re.search(pattern, name) for pattern in patterns or ())
