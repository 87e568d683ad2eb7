"""Tiny decoders of every architecture of transformers with random weights, made from configs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto

#: The architectures that hybridize promises to reproduce; every kind of layer stands in each.
FAMILIES: tuple[str, ...] = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "olmo3",
    "phi3",
    "granite",
    "glm4",
    "gpt_neox",
    "gpt2",
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "qwen3_next",
    "qwen3_5_text",
    "olmo_hybrid",
    "kimi_linear",
    "bamba",
    "jamba",
    "falcon_h1",
    "nemotron_h",
    "granitemoehybrid",
    "lfm2",
    "recurrent_gemma",
)

DEPTH = 4

# What a field of a config shrinks to, in whichever architecture it stands. No two kinds of size
# are equal where that can be had, so that a mixed-up shape cannot fit by accident.
SIZES: Mapping[str, Any] = (
    dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_dim", "word_embed_proj_dim"), 32)
    | dict.fromkeys(("lru_width", "attention_hidden_size"), 32)
    | dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "dff", "dim_ff"), 48)
    | dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size"), 48)
    | dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), DEPTH)
    | dict.fromkeys(("num_blocks",), DEPTH)
    | dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), 64)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64)
    | dict.fromkeys(("context_length", "model_max_length", "original_max_position_embeddings"), 64)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads"), 4)
    | dict.fromkeys(("swa_num_attention_heads", "linear_num_heads", "index_n_heads"), 4)
    | dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2)
    | dict.fromkeys(("head_dim", "swa_head_dim", "dim_head", "kv_channels", "index_head_dim"), 8)
    | dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rotary_dim"), 8)
    | dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size"), 4)
    | dict.fromkeys(("window_size", "local_attention", "attention_chunk_size"), 4)
    | dict.fromkeys(("index_topk", "keep_window_size"), 4)
    | dict.fromkeys(("block_size", "index_block_size"), 8)
    | dict.fromkeys(("q_lora_rank", "o_lora_rank"), 16)
    | dict.fromkeys(("kv_lora_rank", "gated_norm_rank", "d_rel", "laurel_rank"), 8)
    # mixtures of experts
    | dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4)
    | dict.fromkeys(("moe_num_experts",), 4)
    | dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2)
    | dict.fromkeys(("n_group", "num_expert_group"), 2)
    | dict.fromkeys(("topk_group",), 1)
    | dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 24)
    | dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 40)
    | dict.fromkeys(("moe_shared_expert_intermediate_size",), 40)
    | dict.fromkeys(("shared_experts_intermediate_size",), 40)
    # state spaces and linear attention
    | dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 6)
    | dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 3)
    | dict.fromkeys(("num_heads", "mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8)
    | dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8)
    | dict.fromkeys(("mamba_d_ssm",), 64)
    | dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 2)
    | dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8)
    | dict.fromkeys(("linear_key_head_dim", "linear_head_dim"), 8)
    | dict.fromkeys(("linear_value_head_dim",), 12)
    | dict.fromkeys(("linear_num_key_heads",), 2)
    | dict.fromkeys(("linear_num_value_heads",), 4)
)
TOKENS: Mapping[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# Kinds of layer by depth: the first list alternates the kinds, the second changes half-way, so
# that four layers hold every combination of two mixers and two MLPs.
MIXERS = ("layer_types", "layers_block_type", "block_types")
MLPS = ("mlp_layer_types",)

SLIDING = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2

BYTES = {
    "head_dim": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "vocab_size": 64,
}

# Layers 1 and 3 have heads of their own.
DOTS_SLIDING = {layer: {"kv_lora_rank": 12, "q_lora_rank": 20} for layer in (1, 3)}

# What the defaults of an architecture leave out: kinds of layer, windows, and multipliers of one.
OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        "cross_attn_k": 1,
        "encoder_hash_byte_group_size": [3],
        "encoder_hash_byte_group_vocab": 16,
        "decoder_config": BYTES | {"cross_attn_k": 1, "hidden_size_global": 32},
        "encoder_config": BYTES | {"cross_attn_k": 1, "hidden_size_global": 32},
        "global_config": BYTES,
        "patcher_config": BYTES,
    },
    "cohere_compass_text": {
        "layer_types": SLIDING,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": None,
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {
        "first_k_dense_replace": 2,
        "num_experts_per_tok": 2,
        "topk_group": 1,
        "n_group": 2,
    },
    "deepseek_v3": {"first_k_dense_replace": 2},
    "dots1": {
        "first_k_dense_replace": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
    },
    "dots3_note_text": {"head_dim": 16, "per_layer_config": DOTS_SLIDING},
    "falcon_h1": {
        "attention_in_multiplier": 0.9,
        "attention_out_multiplier": 0.8,
        "embedding_multiplier": 1.5,
        "key_multiplier": 0.7,
        "lm_head_multiplier": 1.1,
        "mlp_multipliers": [0.9, 1.2],
        "ssm_in_multiplier": 1.1,
        "ssm_multipliers": [0.9, 1.1, 1.2, 0.8, 0.7],
        "ssm_out_multiplier": 0.9,
    },
    "gemma3n_text": {
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
        "hidden_size_per_layer_input": 8,
        "intermediate_size": [48] * 4,
        "layer_types": SLIDING,
        "num_kv_shared_layers": 2,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.5,
        "residual_multiplier": 0.6,
    },
    "granitemoehybrid": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3.0,
        "layer_types": LINEAR,
        "logits_scaling": 0.5,
        "position_embedding_type": "rope",
        "residual_multiplier": 0.6,
    },
    "hrm_text": {"num_hidden_layers": 8, "num_layers_per_stack": 1},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"head_dim": 8, "num_layers": 2, "zero_expert_num": 2},
    "ministral": {"head_dim": 8},
    "mixtral": {"sliding_window": 4},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "phi3": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "layer_types": SLIDING},
    "qwen3": {"use_sliding_window": True, "layer_types": SLIDING},
    "qwen3_moe": {"mlp_only_layers": [0, 2]},
    "qwen3_next": {"mlp_only_layers": [2, 3]},
    "qwen4_exp_text": {
        "hc_lowrank": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "indexer_head_dim": 8,
        "indexer_kv_heads": 1,
        "indexer_n_heads": 4,
    },
    "xlstm": {"embedding_dim": 128, "hidden_size": 128, "num_heads": 4},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {
        "adapter_rank": 8,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_key_value_heads": 4,
        "num_query_groups": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}

MODALITIES = {"text_config", "vision_config", "audio_config", "audio_encoder_config", "decoder"}

#: Causal heads that transformers has for the decoder half of an encoder-decoder only.
DECODER_HALVES = frozenset({"bert-generation", "musicgen", "musicgen_melody", "trocr"})


@cache
def all_causal_types() -> tuple[str, ...]:
    """Model types of transformers that are decoder-only language models, in its own order.

    Left out are types whose causal head is a mode of something else: those that transformers also
    lists with a masked, sequence-to-sequence or speech head, those without a life of their own
    (`DECODER_HALVES`), and those whose config nests another modality or a text model.
    """
    others = {
        *modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        *DECODER_HALVES,
    }
    return tuple(
        name
        for name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if name not in others and not MODALITIES & set(CONFIG_MAPPING[name].sub_configs)
    )


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """The config of a tiny model: width 32, vocabulary 64, four layers of every kind there is.

    Args:
        model_type: any of `all_causal_types()`.
        overrides: fields of that architecture's config.
    """
    fields = shrink(CONFIG_MAPPING[model_type]().to_dict())
    fields |= {**OVERRIDES.get(model_type, {}), **overrides}
    return AutoConfig.for_model(model_type, **fields)


def shrink(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that must be set to make its model tiny."""
    fields = {name: size for name, size in SIZES.items() if defaults.get(name) is not None}
    fields |= {name: token for name, token in TOKENS.items() if name in defaults}
    if "qk_rope_head_dim" in defaults:  # latent attention: the other head widths follow
        fields["num_key_value_heads"] = fields["num_attention_heads"]
        fields.pop("head_dim", None)
    for name in MIXERS:
        if kinds := distinct(defaults.get(name)):
            fields[name] = [kinds[i % len(kinds)] for i in range(max(DEPTH, len(kinds)))]
    for name in MLPS:
        if kinds := distinct(defaults.get(name)):
            fields[name] = [kinds[i * len(kinds) // DEPTH] for i in range(DEPTH)]
    nested = {name: value for name, value in defaults.items() if name.endswith("_config")}
    return fields | {name: shrink(value) for name, value in nested.items() if value}


def tiny_model(model_type: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny model in evaluation mode in which every tensor of the state dict matters.

    Args:
        model_type: any of `all_causal_types()`.
        seed: of every weight; two seeds differ in every tensor.
        overrides: fields of that architecture's config.
    """
    config = tiny_config(model_type, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
        randomize_(model)
    return model.eval()


@torch.no_grad()
def randomize_(model: PreTrainedModel) -> None:
    """Give every tensor of the state dict a spread of its own, about the values that it starts at.

    transformers starts matrices so small that a lost layer hardly shows, and norms and biases at
    one and zero, where a lost one does not show at all.
    """
    for name, tensor in {
        id(t): (n, t) for n, t in model.state_dict(keep_vars=True).items()
    }.values():
        if not tensor.is_floating_point():
            continue
        if tensor.ndim > 1 and "A_log" not in name:
            tensor.normal_(std=tensor.shape[-1] ** -0.5)
        else:
            tensor.add_(0.3 * torch.randn_like(tensor))


def distinct(kinds: Any) -> list[str]:
    """The kinds of layer in a per-layer list, once each; none if all are alike."""
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        return []
    found = list(dict.fromkeys(kinds))
    return found if len(found) > 1 else []
