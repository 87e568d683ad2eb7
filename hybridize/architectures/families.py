"""The exceptions of model families: a line for each type that is not like all others. No torch.

Whatever is not here is found out of configs, tensor names and transformers' own sources, so that a
new family needs no line as a rule: docs/new-family.md says how to see whether it does.
tests/assembler/test_architectures.py measures every causal language model of the installed
transformers: each is bit for bit itself under the identity recipe, or is refused here with a
reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_STREAMS = "several residual streams run between its layers, and a stack hands on one"
_OWN_CACHE = "its layers keep their state in a cache class of their own, which no other layer reads"
_NO_CACHE = "its class takes no cache of transformers, so a stack could not generate with one"
_SHARED = "some of its layers share their weights, and a slot is one layer"
_TOP_K = "its layers hand their choice of tokens on to the layers above, beside the residual stream"


@dataclass(frozen=True)
class Family:
    """What is particular about a type; by default nothing.

    Attributes:
        refused: why it cannot be a donor: the runtime does not reproduce it.
        wrapper_refused: why the language model in it cannot: its files or outputs are not to be had
            without the whole.
        fixed_positions: it cannot read beyond its positions: these are learned, or lie in a table.
        several_models: its config holds several models; the language model has a type of its own.
        decoder_half: transformers has its causal head for half of an encoder-decoder only.
        never_tied: its class ties no head to the embedding, whatever the config says.
        whole_inside: the language model within it has a head, and its config is the one that
            counts.
        same_config_as: the type whose config class reads it.
        scales_stream: its layers multiply the stream, whatever their projections give.
        within: what a multimodal class does otherwise than its language model alone.
        own_embedding: a field of its config; unless that is zero, each of its layers reads an
            embedding of its own, and can stand above the embedding of its donor alone.
    """

    refused: str | None = None
    wrapper_refused: str | None = None
    fixed_positions: bool = False
    several_models: bool = False
    decoder_half: bool = False
    never_tied: bool = False
    whole_inside: bool = False
    same_config_as: str | None = None
    scales_stream: bool = False
    within: Mapping[str, Any] = field(default_factory=dict)
    own_embedding: str | None = None


FAMILIES: Mapping[str, Family] = {
    "aya_vision": Family(within={"logit_scale": 1.0}),
    "bailing_hybrid": Family(never_tied=True),
    "beam": Family(scales_stream=True),
    "bert-generation": Family(decoder_half=True),
    "biogpt": Family(fixed_positions=True),
    "blip-2": Family(whole_inside=True),
    "blt": Family(refused="it is three models of bytes and patches, without one list of layers"),
    "codegen": Family(fixed_positions=True),
    "cohere2_vision": Family(within={"logit_scale": 1.0}),
    "cpmant": Family(
        refused="it takes no embedded input, and puts prompt positions of its own before each"
    ),
    "ctrl": Family(fixed_positions=True),
    "deepseek_v4": Family(refused=_STREAMS),
    "doge": Family(scales_stream=True),
    "dots3_note": Family(several_models=True),
    "emu3": Family(several_models=True),
    "fast_vlm": Family(wrapper_refused="its files are read by a class that needs timm"),
    "fuyu": Family(several_models=True),
    "gemma3": Family(several_models=True),
    "gemma3n": Family(several_models=True),
    "gemma3n_text": Family(refused=_STREAMS),
    "gemma4": Family(several_models=True),
    "gemma4_assistant": Family(several_models=True),
    "gemma4_text": Family(scales_stream=True, own_embedding="hidden_size_per_layer_input"),
    "gemma4_unified": Family(several_models=True),
    "gemma4_unified_assistant": Family(several_models=True),
    "gemma4_unified_text": Family(scales_stream=True),
    "git": Family(several_models=True),
    "glm_moe_dsa": Family(refused=_TOP_K),
    "got_ocr2": Family(several_models=True),
    "gpt-sw3": Family(fixed_positions=True, same_config_as="gpt2"),
    "gpt2": Family(fixed_positions=True),
    "gpt_bigcode": Family(fixed_positions=True),
    "gpt_neo": Family(fixed_positions=True),
    "gptj": Family(fixed_positions=True),
    "granite_speech": Family(within={"logits_scaling": 1.0}),
    "granite_speech_plus": Family(within={"logits_scaling": 1.0}),
    "hrm_text": Family(refused="it runs each of its two stacks several times for every token"),
    "hy_v4": Family(refused=_TOP_K),
    "hybridize": Family(refused="it is a hybrid already; name its donors and their layers"),
    "inkling2_text": Family(
        refused="its layers read what whole blocks of layers below them put out"
    ),
    "inkling_mm_model": Family(
        wrapper_refused="its files hold the rows of its experts in an order of their own"
    ),
    "inkling_text": Family(never_tied=True),
    "instructblip": Family(whole_inside=True),
    "instructblipvideo": Family(whole_inside=True),
    "kimi_linear": Family(never_tied=True),
    "llama4": Family(several_models=True, whole_inside=True),
    "longcat_flash": Family(
        refused="each of its layers has two attentions and fills two entries of the cache"
    ),
    "minimax": Family(refused=_OWN_CACHE),
    "mllama": Family(several_models=True),
    "modernbert-decoder": Family(refused="its head has a dense layer and a norm before the matrix"),
    "moshi": Family(several_models=True),
    "moss_transcribe_diarize": Family(several_models=True),
    "mpt": Family(fixed_positions=True),
    "musicgen": Family(decoder_half=True),
    "musicgen_melody": Family(decoder_half=True),
    "nemotron_h": Family(never_tied=True),
    "nemotron_h_omni": Family(whole_inside=True),
    "openai-gpt": Family(refused=_NO_CACHE),
    "opt": Family(fixed_positions=True),
    "perception_lm": Family(wrapper_refused="its files are read by a class that needs timm"),
    "phi4_multimodal": Family(several_models=True),
    "qwen3_5": Family(several_models=True),
    "qwen3_5_moe": Family(several_models=True),
    "qwen4_exp": Family(several_models=True),
    "qwen4_exp_text": Family(refused=_STREAMS),
    "rwkv": Family(refused=_NO_CACHE),
    "shieldgemma2": Family(wrapper_refused="it classifies images, and writes no text"),
    "trocr": Family(decoder_half=True),
    "xlnet": Family(refused=_NO_CACHE),
    "xlstm": Family(refused=_OWN_CACHE),
    "zamba": Family(refused=_SHARED),
    "zamba2": Family(refused=_SHARED),
    "zaya": Family(
        refused="its routers add up their states from layer to layer, beside the residual stream"
    ),
}


def family(model_type: Any) -> Family:
    """The entry of a type."""
    return FAMILIES.get(str(model_type), Family())


def types_with(trait: str) -> list[str]:
    """The types for which a field of `Family` says something."""
    return [name for name, entry in FAMILIES.items() if getattr(entry, trait)]
