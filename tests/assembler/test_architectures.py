"""Every causal language model of transformers is reproduced bit for bit, or refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from hybridize.architectures.families import types_with
from hybridize.architectures.refused import known_types, needs_own_embedding, refusal
from hybridize.model.donors import positions_of
from tests.support.by_hand import IDS, MASK, by_hand
from tests.support.families import ACCEPTED
from tests.support.inmemory import State, assemble, depth, identity
from tests.support.tiny import FAMILIES, all_causal_types, tiny_config, tiny_model

DECODING = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "use_cache": True}
DETAILS = {"return_dict_in_generate": True, "output_logits": True}


def test_known_types_are_those_of_transformers() -> None:
    """They are read from its source, since a plan must not wait for its import."""
    assert known_types() == tuple(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_every_type_is_measured_or_refused() -> None:
    """Nothing in between: the sweep below runs over all that no reason is given for."""
    decoders = set(all_causal_types())
    for name in known_types():
        assert name in decoders or refusal(name) is not None, name
    assert {name for name in known_types() if refusal(name) is None} == set(ACCEPTED)
    assert set(types_with("refused")) - {"hybridize"} <= decoders
    assert not {*types_with("decoder_half"), *types_with("several_models")} & decoders
    assert not [name for name in FAMILIES if refusal(name) is not None]


def test_reasons() -> None:
    """Golden texts; a donor's error quotes them."""
    nothing = "the installed transformers has no causal language model of this type"
    assert refusal("qwen3") is None
    assert refusal("qwen33") == f"{nothing}; did you mean qwen3?"
    assert refusal("???") == nothing
    assert refusal("bert") == (
        "it is an encoder or encoder-decoder, and its causal head a mode of its decoder"
    )
    assert refusal("gemma3") == (
        "it holds several models, and no language model is nested in its config"
    )
    shares = {"num_kv_shared_layers": 18}
    assert refusal("gemma4_text", {"num_kv_shared_layers": 0}) is None
    assert "hand on" in str(refusal("gemma4_text", shares))


def test_reading_the_types_loads_no_transformers() -> None:
    """`hybridize plan` answers in half a second."""
    script = (
        "import sys; from hybridize.architectures.refused import refusal; refusal('x'); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def saved(donor: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """The donor's tensors as they lie on disk: tied ones once, experts one by one."""
    donor.save_pretrained(folder)
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ACCEPTED)
@torch.no_grad()
def test_accepted_types_are_themselves_under_the_identity_recipe(
    model_type: str, tmp_path: Path
) -> None:
    """From disk to logits, left-padded, and in cached decoding beyond the windows."""
    donor = tiny_model(model_type)
    states: dict[str, State] = {"only": saved(donor, tmp_path)}
    tied = getattr(donor.config, "tie_word_embeddings", False)
    hybrid = identity(donor, states=states, tie=bool(tied))
    batch = {"input_ids": IDS, "attention_mask": MASK}
    assert torch.equal(hybrid(**batch).logits, donor(**batch).logits)
    ours = hybrid.generate(**batch, **DECODING, **DETAILS)
    theirs = donor.generate(**batch, **DECODING, **DETAILS)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ACCEPTED)
@torch.no_grad()
def test_accepted_types_stand_above_another_donors_embedding(model_type: str) -> None:
    """Between layers of a Llama they run as their donor calls them, or say that they cannot."""
    donors = {"host": tiny_model("llama", seed=5), "guest": tiny_model(model_type)}
    guests = [("guest", layer) for layer in range(depth(donors["guest"]))]
    picks = [("host", 0), *guests, ("host", 3)]
    hybrid = assemble(donors, picks, embeddings="host", head="host")
    batch: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK, "use_cache": False}
    if needs_own_embedding(donors["guest"].config.to_dict()):
        with pytest.raises(RuntimeError):
            hybrid(**batch)
    else:
        assert torch.equal(hybrid(**batch).logits, by_hand(donors, picks, "host", "host"))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(types_with("refused")) - {"hybridize"}))
def test_refused_types_can_be_built_tiny(model_type: str) -> None:
    """A reason is given for an architecture that exists; some cannot even run with a cache."""
    assert tiny_config(model_type).model_type == model_type
    assert tiny_model(model_type)(input_ids=IDS, use_cache=False).logits.isfinite().all()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in ACCEPTED])
@torch.no_grad()
def test_what_cannot_read_beyond_its_positions_is_listed(name: str) -> None:
    """A context length that a model fails at is worse than a short one."""
    model = tiny_model(name)
    length = positions_of(model.config.to_dict()) or 64
    ids = torch.arange(3, 4 + length)[None] % 60
    assert model(ids[:, :-1], use_cache=False).logits.isfinite().all()
    try:
        model(ids, use_cache=False)
    except (IndexError, RuntimeError):
        assert name in types_with("fixed_positions")
    else:
        assert name not in types_with("fixed_positions")
