"""Which architectures of transformers can be donors, read without importing transformers."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hybridize.architectures.families import family


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
    entry = family(model_type)
    if entry.refused:
        return entry.refused
    if entry.several_models:
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
    if reason := family(model_type).wrapper_refused:
        return reason
    tasks = ("MULTIMODAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM")
    writers = [name for task in tasks for name in _listed(f"MODEL_FOR_{task}_MAPPING_NAMES")]
    if known_types() and model_type not in writers:
        return "the installed transformers has no class of this type that writes text"
    return None


def needs_own_embedding(config: Mapping[str, Any]) -> str | None:
    """Why the layers of a donor can only stand above its own embedding; None if they need not."""
    width = family(config.get("model_type")).own_embedding
    if width is not None and config.get(width, True):
        return "each of its layers reads an embedding of the tokens of its own"
    return None


def _is_mode_of_another(model_type: str) -> bool:
    """Whether the causal language model of a type is a mode or half of something else."""
    others = ("MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")
    listed = any(model_type in _listed(f"MODEL_FOR_{other}_MAPPING_NAMES") for other in others)
    return listed or family(model_type).decoder_half or family(model_type).several_models


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
