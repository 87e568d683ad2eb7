"""Which architectures of transformers can be donors: what the runtime cannot reproduce, and why.

Read without importing transformers. tests/assembler/test_architectures.py measures every causal
language model of the installed transformers: each is bit for bit itself under the identity recipe,
or stands here with a reason.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_STREAMS = "several residual streams run between its layers, and a stack hands on one"
_OWN_CACHE = "its layers keep their state in a cache class of their own, which no other layer reads"
_NO_CACHE = "its class takes no cache of transformers, so a stack could not generate with one"
_SHARED = "some of its layers share their weights, and a slot is one layer"
_TOP_K = "its layers hand their choice of tokens on to the layers above, beside the residual stream"

#: Decoders that the runtime does not reproduce.
REFUSED: Mapping[str, str] = {
    "blt": "it is three models of bytes and patches, without one list of layers",
    "cpmant": "it takes no embedded input, and puts prompt positions of its own before each",
    "deepseek_v4": _STREAMS,
    "gemma3n_text": _STREAMS,
    "glm_moe_dsa": _TOP_K,
    "hrm_text": "it runs each of its two stacks several times for every token",
    "hy_v4": _TOP_K,
    "hybridize": "it is a hybrid already; name its donors and their layers",
    "inkling2_text": "its layers read what whole blocks of layers below them put out",
    "longcat_flash": "each of its layers has two attentions and fills two entries of the cache",
    "minimax": _OWN_CACHE,
    "modernbert-decoder": "its head has a dense layer and a norm before the matrix",
    "openai-gpt": _NO_CACHE,
    "qwen4_exp_text": _STREAMS,
    "rwkv": _NO_CACHE,
    "xlnet": _NO_CACHE,
    "xlstm": _OWN_CACHE,
    "zamba": _SHARED,
    "zamba2": _SHARED,
    "zaya": "its routers add up their states from layer to layer, beside the residual stream",
}

#: Types that cannot read beyond their positions: these are learned, or lie in a table of that size.
FIXED_POSITIONS = frozenset(
    {
        "biogpt",
        "codegen",
        "ctrl",
        "gpt-sw3",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gptj",
        "mpt",
        "opt",
    }
)

#: Models around a language model whose files or outputs are not to be had without them.
REFUSED_WRAPPERS: Mapping[str, str] = {
    "fast_vlm": "its files are read by a class that needs timm",
    "inkling_mm_model": "its files hold the rows of its experts in an order of their own",
    "perception_lm": "its files are read by a class that needs timm",
    "shieldgemma2": "it classifies images, and writes no text",
}

#: Types whose config holds several models; the language model in it has a type of its own.
SEVERAL_MODELS = frozenset(
    {
        "dots3_note",
        "emu3",
        "fuyu",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gemma4_assistant",
        "gemma4_unified",
        "gemma4_unified_assistant",
        "git",
        "got_ocr2",
        "llama4",
        "mllama",
        "moshi",
        "moss_transcribe_diarize",
        "phi4_multimodal",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen4_exp",
    }
)

#: Causal heads that transformers has for the decoder half of an encoder-decoder only.
DECODER_HALVES = frozenset({"bert-generation", "musicgen", "musicgen_melody", "trocr"})


def known_types() -> tuple[str, ...]:
    """Model types that the installed transformers has a causal language model for, in its order.

    Empty if transformers is not installed.
    """
    return _listed("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


def refusal(model_type: str, config: Mapping[str, Any] | None = None) -> str | None:
    """Why models of a type cannot be donors; None if they can.

    Args:
        model_type: of the language model, not of a multimodal model around it.
        config: its config.json, for types of which only some models are refused.
    """
    if model_type in REFUSED:
        return REFUSED[model_type]
    if model_type in SEVERAL_MODELS:
        return "it holds several models, and no language model is nested in its config"
    known = known_types()
    if known and model_type not in known:
        decoders = [name for name in known if not _is_mode_of_another(name)]
        close = difflib.get_close_matches(model_type, decoders, n=1)
        guess = f"; did you mean {close[0]}?" if close else ""
        return f"the installed transformers has no causal language model of this type{guess}"
    if _is_mode_of_another(model_type):
        return "it is an encoder or encoder-decoder, and its causal head a mode of its decoder"
    if config is not None and config.get("num_kv_shared_layers"):
        return "its highest layers read keys and values that layers below hand on to them"
    return None


def wrapper_refusal(model_type: str) -> str | None:
    """Why the language model within a model of a type cannot be a donor; None if it can."""
    if model_type in REFUSED_WRAPPERS:
        return REFUSED_WRAPPERS[model_type]
    tasks = ("MULTIMODAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM")
    writers = [name for task in tasks for name in _listed(f"MODEL_FOR_{task}_MAPPING_NAMES")]
    if known_types() and model_type not in writers:
        return "the installed transformers has no class of this type that writes text"
    return None


def needs_own_embedding(config: Mapping[str, Any]) -> str | None:
    """Why the layers of a donor can only stand above its own embedding; None if they need not."""
    if config.get("model_type") == "gemma4_text" and config.get("hidden_size_per_layer_input", 256):
        return "each of its layers reads an embedding of the tokens of its own"
    return None


def _is_mode_of_another(model_type: str) -> bool:
    """Whether the causal language model of a type is a mode or half of something else."""
    others = ("MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")
    listed = any(model_type in _listed(f"MODEL_FOR_{other}_MAPPING_NAMES") for other in others)
    return listed or model_type in DECODER_HALVES | SEVERAL_MODELS


@cache
def _listed(mapping: str) -> tuple[str, ...]:
    """The model types in one of transformers' mappings, read from its source.

    A mapping that it takes in (`*list(OTHER.items())`) is left out: ask for that, too.
    """
    statement = re.search(rf"^{mapping} = OrderedDict\((.*?)^\)", _source(), re.M | re.S)
    pairs = ast.parse(statement[1].strip(), mode="eval").body if statement else None
    entries = pairs.elts if isinstance(pairs, ast.List) else []
    return tuple(
        ast.literal_eval(entry)[0] for entry in entries if not isinstance(entry, ast.Starred)
    )


@cache
def _source() -> str:
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return ""
    file = Path(package.origin).parent / "models" / "auto" / "modeling_auto.py"
    return file.read_text(encoding="utf-8")
