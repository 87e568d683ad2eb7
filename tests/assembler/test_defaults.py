"""What config classes fill in is read from their source as transformers itself has it."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

from hybridize.architectures.defaults import class_default, text_type, ties_head
from hybridize.architectures.refused import refusal
from tests.support.tiny import all_causal_types

ACCEPTED = [name for name in all_causal_types() if refusal(name) is None]
# Everything whose config nests a language model that can be a donor.
WRAPPERS = [
    name
    for name, config in CONFIG_MAPPING.items()
    if "text_config" in config.sub_configs and refusal(str(text_type(name))) is None
]
SAYS: tuple[dict[str, Any], ...] = (
    {},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
)


def test_there_are_wrappers() -> None:
    assert {"gemma3", "llava", "mistral3", "paligemma", "internvl", "idefics3"} <= set(WRAPPERS)


@pytest.mark.parametrize("model_type", ACCEPTED)
def test_a_decoder_is_tied_as_its_class_says(model_type: str) -> None:
    """Some 80 types are untied by default and some 40 tied: no one rule holds for all."""
    for says in SAYS:
        config = {"model_type": model_type, **says}
        try:
            theirs = CONFIG_MAPPING[model_type].from_dict(dict(config))
        except StrictDataclassError:
            continue  # DBRX takes no tying at all
        can_tie = bool(MODEL_FOR_CAUSAL_LM_MAPPING[type(theirs)]._tied_weights_keys)
        says_so = bool(getattr(theirs, "tie_word_embeddings", False))
        assert ties_head(config, config) is (can_tie and says_so)


def test_the_first_release_of_lfm2_had_a_key_of_its_own() -> None:
    for says in (True, False):
        config = {"model_type": "lfm2", "tie_embedding": says}
        assert CONFIG_MAPPING["lfm2"].from_dict(dict(config)).tie_word_embeddings is says
        assert ties_head(config, config) is says


@pytest.mark.parametrize("model_type", WRAPPERS)
def test_a_wrapper_is_tied_as_its_class_says(model_type: str) -> None:
    """Its own key counts; many take that of the language model where their own is false."""
    text = text_type(model_type)
    whole = MODEL_FOR_MULTIMODAL_LM_MAPPING.get(CONFIG_MAPPING[model_type], None)
    if whole is None or not whole._tied_weights_keys:
        pytest.skip("no tying of its own: see the wrappers that are built")
    for own, nested in product(SAYS, SAYS):
        inner = {"model_type": text, **nested}
        config = {"model_type": model_type, **own}
        try:
            theirs = CONFIG_MAPPING[model_type].from_dict({**config, "text_config": dict(inner)})
        except StrictDataclassError:
            continue
        assert ties_head(config | {"text_config": inner}, inner) is theirs.tie_word_embeddings


@pytest.mark.parametrize("model_type", WRAPPERS)
def test_the_language_model_of_a_wrapper_has_the_type_of_its_class(model_type: str) -> None:
    """Old files of LLaVA name only what differs from the defaults."""
    try:
        config = CONFIG_MAPPING[model_type]()
    except StrictDataclassError:
        pytest.skip("its class has no default")
    assert text_type(model_type) == config.text_config.model_type


@pytest.mark.parametrize("model_type", ACCEPTED)
def test_sizes_are_those_of_the_class(model_type: str) -> None:
    """The depth, width and rows that a file leaves out."""
    config = CONFIG_MAPPING[model_type]()
    fields = type(config).__dataclass_fields__
    names = {"vocab_size", "hidden_size", "num_hidden_layers", "n_embd", "n_layer", "d_model"}
    for name in names & set(fields):
        assert class_default(model_type, name) == fields[name].default, name


@pytest.mark.parametrize("model_type", ["", "no such", "../llama", "x" * 5000, "llama\0", "auto"])
def test_an_unknown_type_has_no_defaults(model_type: str) -> None:
    assert class_default(model_type, "vocab_size") is None
    assert text_type(model_type) is None


def test_reading_defaults_loads_no_transformers() -> None:
    script = (
        "import sys; from hybridize.architectures.defaults import class_default as d; "
        "assert d('qwen3', 'vocab_size') == 151936; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
