"""Stacks of several donors: equal to their layers called by hand, cached or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from tests.support.inmemory import assemble, depth
from tests.support.runtime_stacks import (
    STACKS,
    all_linear,
    llama_and_olmo_hybrid,
    llama_and_qwen3,
    mixer_swapped,
    mlp_swapped_with_bridges,
    one_layer_of,
    padded_batch,
    two_windows,
)
from tests.support.tiny import tiny_config, tiny_model


@pytest.mark.parametrize("make", STACKS)
def test_greedy_generation_with_cache_equals_without(make: Any) -> None:
    """Whoever generates: the cache of each slot is its own mixer's."""
    model = make()
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    details = {"return_dict_in_generate": True, "output_logits": True}
    batch = padded_batch()
    cached = model.generate(**batch, **options, **details, use_cache=True)
    plain = model.generate(**batch, **options, **details, use_cache=False)
    tolerance = (
        {"atol": 0.06, "rtol": 0.02}
        if model.dtype == torch.bfloat16
        else {"atol": 5e-5, "rtol": 1e-4}
    )
    assert all(torch.isfinite(x).all() for x in plain.logits)
    if model.dtype != torch.bfloat16:  # there, rounding may turn a near tie
        assert torch.equal(cached.sequences, plain.sequences)
        for a, b in zip(cached.logits, plain.logits, strict=True):
            torch.testing.assert_close(a, b, **tolerance)
    else:
        torch.testing.assert_close(cached.logits[0], plain.logits[0], **tolerance)


@pytest.mark.parametrize("make", STACKS)
def test_every_parameter_gets_a_gradient_and_checkpointing_changes_nothing(make: Any) -> None:
    """Whoever trains: no slot is cut off, and gradient checkpointing replays the same step."""
    model = make().train()
    batch = padded_batch(tokens=12)
    batch["labels"] = batch["input_ids"]
    experts = [n for n, _ in model.named_parameters() if "expert" in n or "gate" in n]

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**batch, use_cache=False).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    names = {n for n, _ in model.named_parameters()}
    assert names - set(plain) <= set(experts)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    replayed = gradients()
    assert plain.keys() == replayed.keys()
    assert all(torch.equal(plain[n], replayed[n]) for n in plain)


@pytest.mark.parametrize("make", [llama_and_qwen3, all_linear])
def test_beam_search_reorders_every_cache(make: Any) -> None:
    """Beams with cache choose what beams without cache choose."""
    model = make()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 3, "do_sample": False}
    batch = padded_batch()
    cached = model.generate(**batch, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))


@torch.no_grad()
def test_llama_and_qwen3_equal_their_layers_called_by_hand() -> None:
    """An independent reference: plain loops over the donors' own layers."""
    llama, qwen = tiny_model("llama"), tiny_model("qwen3", seed=1)
    order = [("llama", 0), ("qwen", 1), ("qwen", 2), ("llama", 1), ("qwen", 3)]
    model = assemble({"llama": llama, "qwen": qwen}, order)
    batch = padded_batch()

    bases = {"llama": llama.model, "qwen": qwen.model}
    hidden = llama.model.embed_tokens(batch["input_ids"])
    positions = torch.arange(hidden.shape[1])[None]
    for name, index in order:
        base = bases[name]
        common = {
            "config": base.config,
            "inputs_embeds": hidden,
            "attention_mask": batch["attention_mask"],
            "past_key_values": None,
            "position_ids": positions,
        }
        sliding = (
            getattr(base.config, "layer_types", ["full_attention"] * 4)[index] != "full_attention"
        )
        make_mask = create_sliding_window_causal_mask if sliding else create_causal_mask
        hidden = base.layers[index](
            hidden,
            attention_mask=make_mask(**common),
            position_embeddings=base.rotary_emb(hidden, positions),
            position_ids=positions,
        )
    logits = qwen.lm_head(qwen.model.norm(hidden))
    assert torch.equal(model(**batch).logits, logits)


@pytest.mark.parametrize(
    "family", ["gemma3_text", "jamba", "olmo_hybrid", "qwen3_next", "bamba", "lfm2"]
)
@torch.no_grad()
def test_permuted_layers_equal_the_donor_with_its_layers_permuted(family: str) -> None:
    """`layer_types` and caches follow the layers, not their old places."""
    donor = tiny_model(family)
    order = [2, 3, 0, 1, 1][: depth(donor)]
    model = assemble({"only": donor}, [("only", i) for i in order])
    batch = padded_batch()

    # Each layer alone, called by the donor's own model with the others passed over.
    inputs = model(**batch, output_hidden_states=True).hidden_states
    for slot, index in enumerate(order):
        alone = one_layer_of(donor, index, inputs[slot], batch["attention_mask"])
        if slot + 1 < len(order):
            assert torch.equal(alone, inputs[slot + 1]), (slot, index)


@torch.no_grad()
def test_a_cache_made_without_a_config_is_filled_like_any_other() -> None:
    """`DynamicCache()` grows its entries by itself; slots need entries of their own kinds."""
    model = llama_and_olmo_hybrid()
    ids = padded_batch()["input_ids"]
    cache = DynamicCache()
    model(ids[:, :5], past_key_values=cache, use_cache=True)
    step = model(ids[:, 5:6], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(step[:, -1], model(ids[:, :6]).logits[:, -1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_a_donor_does_to_its_embeddings_is_kept_under_another_head() -> None:
    """Gemma multiplies them, NanoChat puts them through its (weightless) final norm."""
    ids = padded_batch()["input_ids"]
    for family in ("gemma2", "nanochat", "granite", "bloom", "gpt2"):
        donors = {"below": tiny_model(family), "above": tiny_model("llama", seed=1)}
        model = assemble(donors, [("below", 0), ("above", 1)])
        ours = model(ids, output_hidden_states=True).hidden_states
        theirs = donors["below"](ids, output_hidden_states=True).hidden_states
        assert torch.equal(ours[0], theirs[0]), family
        assert torch.equal(ours[1], theirs[1]), family


@pytest.mark.parametrize("make", [all_linear, llama_and_olmo_hybrid, mixer_swapped])
def test_packed_documents_are_refused_where_they_would_leak(make: Any) -> None:
    """Recurrent slots run on from one document into the next; attention masks them."""
    model = make()
    ids = torch.randint(3, 60, (1, 8))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    with pytest.raises(ValueError, match="leak through the slots of type linear_attention"):
        model(ids, position_ids=positions, use_cache=False)
    model(ids, position_ids=torch.arange(8)[None], use_cache=False)


@torch.no_grad()
def test_packed_documents_do_not_see_each_other_where_all_is_attention() -> None:
    """As natively: positions that start anew, no mask, no cache."""
    model = llama_and_qwen3()
    first, second = torch.randint(3, 60, (1, 5)), torch.randint(3, 60, (1, 3))
    packed = torch.cat([first, second], dim=1)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    together = model(packed, position_ids=positions, use_cache=False).logits
    alone = torch.cat([model(first).logits, model(second).logits], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_layer_types_say_what_each_slots_cache_is() -> None:
    """Serving engines and caches read only the config."""
    config = two_windows().config
    assert (
        config.layer_types
        == ["sliding_attention", "sliding_attention", "full_attention"] + ["sliding_attention"] * 2
    )
    windows = [layer.sliding_window for layer in config.per_layer_config]
    assert windows == [3, 6, None, 3, 6]
    assert mixer_swapped().config.layer_types[1] == "linear_attention"
    assert mlp_swapped_with_bridges().config.layer_types[1] == "full_attention"


def test_tiny_config_is_what_the_hybrid_reads() -> None:
    """A donor's config may lack keys, as old ones on the hub do: its class knows the defaults."""
    donor = tiny_model("llama")
    content = tiny_config("llama").to_dict()
    for key in ("attention_bias", "mlp_bias", "rope_parameters", "hidden_act"):
        content.pop(key, None)
    config = assemble({"a": donor}, [("a", 0)]).config
    config.donors["a"] = content
    assert config.donor_config("a").hidden_act == "silu"
