"""Tiny multimodal models of every class of transformers with a language model inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from hybridize.architectures.defaults import text_type
from hybridize.architectures.refused import refusal
from tests.support.tiny import OVERRIDES, randomize_, shrink

CLASSES: tuple[Any, ...] = (
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

# What their classes ask of sizes that must fit each other.
FITTING: Mapping[str, Mapping[str, Any]] = {
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32, "per_layer_config": None},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "nemo_speechlm": {
        "audio_config": {"diarization_config": {"head_config": {"audio_hidden_size": 32}}},
        "word_timestamp_config": {"blank_token_id": 63},
    },
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "vibevoice_asr": {
        f"{part}_tokenizer_encoder_config": {"num_filters": 4, "depths": [1] * 7, "hidden_size": 8}
        for part in ("acoustic", "semantic")
    },
    "qwen2_audio": {"audio_config": {"encoder_attention_heads": 4}},
}


def all_wrappers() -> tuple[str, ...]:
    """Model types whose config nests a language model that could be a donor by its type."""
    return tuple(
        name
        for name, config in CONFIG_MAPPING.items()
        if "text_config" in config.sub_configs and refusal(str(text_type(name))) is None
    )


def whole_class(model_type: str) -> Any:
    """The class of a type that writes text; None if there is none."""
    config = CONFIG_MAPPING[model_type]
    return next((mapping[config] for mapping in CLASSES if config in mapping), None)


def tiny_whole_config(model_type: str) -> PreTrainedConfig:
    """The config of a tiny model of a type of `all_wrappers()`."""
    try:
        defaults = CONFIG_MAPPING[model_type]().to_dict()
    except ValueError:  # Fun-ASR's defaults do not fit each other
        defaults = CONFIG_MAPPING[model_type](**FITTING[model_type]).to_dict()
    text = str(defaults["text_config"]["model_type"])
    fields = merged(_with_types(defaults), shrink(defaults))
    fields.pop("model_type")
    fields = merged(fields, {"text_config": OVERRIDES.get(text, {})})
    return AutoConfig.for_model(model_type, **merged(fields, FITTING.get(model_type, {})))


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two configs, the second's word first, nested ones too."""
    both = {
        key: merged(one[key], value)
        if isinstance(value, Mapping) and isinstance(one.get(key), Mapping)
        else value
        for key, value in other.items()
    }
    return {**one, **both}


def _with_types(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The types of nested configs, which `shrink` leaves out."""
    nested = {k: v for k, v in defaults.items() if k.endswith("_config") and isinstance(v, dict)}
    types = {"model_type": defaults["model_type"]} if defaults.get("model_type") else {}
    return types | {name: _with_types(value) for name, value in nested.items()}


def tiny_whole(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model in evaluation mode in which every tensor matters."""
    config = tiny_whole_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = whole_class(model_type)(config)
        randomize_(model)
    return model.eval()
