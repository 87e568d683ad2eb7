"""Stacks of several donors: equal to their layers called by hand, cached or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from hybridize.runtime import HybridForCausalLM
from tests.assembler.inmemory import assemble, depth
from tests.tiny import tiny_config, tiny_model


def wide(family: str, width: int, **overrides: Any) -> PreTrainedModel:
    return tiny_model(family, hidden_size=width, **overrides)


def linear(width_in: int, width_out: int, **options: Any) -> dict[str, Any]:
    return {"kind": "linear", "in": width_in, "out": width_out, **options}


def llama_and_qwen3() -> HybridForCausalLM:
    donors = {"llama": tiny_model("llama"), "qwen": tiny_model("qwen3", seed=1)}
    slots = [("llama", 0), ("qwen", 1), ("qwen", 2), ("llama", 1), ("qwen", 3)]
    return assemble(donors, slots)


def llama_and_olmo_hybrid() -> HybridForCausalLM:
    donors = {"llama": wide("llama", 64), "olmo": wide("olmo_hybrid", 96, seed=1)}
    slots = [("llama", 0), ("olmo", 0), ("olmo", 1), ("olmo", 2), ("llama", 3)]
    bridges = {1: linear(64, 96, norm=True), 4: linear(96, 64, bias=True), "head": linear(64, 96)}
    return assemble(donors, slots, bridges=bridges, head="olmo")


def two_windows() -> HybridForCausalLM:
    donors = {
        "near": tiny_model("mistral", sliding_window=3),
        "far": tiny_model("mistral", seed=1, sliding_window=6),
        "all": tiny_model("llama", seed=2),
    }
    return assemble(donors, [("near", 0), ("far", 1), ("all", 0), ("near", 2), ("far", 3)])


def all_linear() -> HybridForCausalLM:
    donors = {"next": tiny_model("qwen3_next"), "mamba": tiny_model("mamba2", seed=1)}
    linear_layers = [i for i, t in enumerate(donors["next"].config.layer_types) if "linear" in t]
    slots = [("next", i) for i in linear_layers] + [("mamba", 0), ("mamba", 1)]
    return assemble(donors, slots)


def mamba_with_fp32_residual() -> HybridForCausalLM:
    mamba = tiny_model("mamba", residual_in_fp32=True).bfloat16()
    donors = {"mamba": mamba, "llama": tiny_model("llama", seed=1).bfloat16()}
    slots = [("mamba", 0), ("mamba", 1), ("llama", 1), ("mamba", 2)]
    return assemble(donors, slots, dtype=torch.bfloat16)


def repeats() -> HybridForCausalLM:
    donors = {"a": tiny_model("gemma2"), "b": tiny_model("jamba", seed=1)}
    return assemble(donors, [("a", 1), ("a", 1), ("b", 2), ("b", 1), ("a", 1), ("b", 2)])


def mixer_swapped() -> HybridForCausalLM:
    donors = {"host": tiny_model("llama"), "guest": tiny_model("qwen3_next", seed=1)}
    swap = {"self_attn": {"donor": "guest", "layer": 0, "module": "linear_attn"}}
    return assemble(donors, [("host", 0), {"donor": "host", "layer": 1, "swap": swap}, ("host", 2)])


def one_layer_in_many_forms() -> HybridForCausalLM:
    """Whole, with a swapped mixer, whole again, and as the source of a swapped MLP."""
    donors = {"a": tiny_model("llama"), "b": tiny_model("qwen3", seed=1)}
    mixer = {"self_attn": {"donor": "b", "layer": 0, "module": "self_attn"}}
    mlp = {"mlp": {"donor": "a", "layer": 1, "module": "mlp"}}
    slots = [
        {"donor": "a", "layer": 1, "swap": mixer},
        ("a", 1),
        {"donor": "a", "layer": 1, "swap": mixer},
        {"donor": "b", "layer": 0, "swap": mlp},
        ("b", 0),
    ]
    return assemble(donors, slots)


def mixer_swapped_into_linear_host() -> HybridForCausalLM:
    donors = {"host": tiny_model("qwen3_next"), "guest": tiny_model("gemma3_text", seed=1)}
    swap = {"linear_attn": {"donor": "guest", "layer": 0, "module": "self_attn"}}
    return assemble(donors, [("host", 1), {"donor": "host", "layer": 0, "swap": swap}, ("host", 2)])


def mlp_swapped_with_bridges() -> HybridForCausalLM:
    donors = {"host": wide("llama", 32), "guest": wide("qwen3_moe", 48, seed=1)}
    around = {"enter": linear(32, 48, norm=True, bias=True), "leave": linear(48, 32)}
    spec = {"donor": "guest", "layer": 1, "module": "mlp", "bridges": around}
    return assemble(donors, [("host", 0), {"donor": "host", "layer": 1, "swap": {"mlp": spec}}])


STACKS = [
    llama_and_qwen3,
    llama_and_olmo_hybrid,
    two_windows,
    all_linear,
    mamba_with_fp32_residual,
    repeats,
    mixer_swapped,
    one_layer_in_many_forms,
    mixer_swapped_into_linear_host,
    mlp_swapped_with_bridges,
]


def padded_batch(rows: int = 2, tokens: int = 9) -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


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


def one_layer_of(donor: PreTrainedModel, index: int, hidden: Tensor, mask: Tensor) -> Tensor:
    """What the donor's layer makes of a state, found by hooks in a run of the whole donor."""
    layers = donor.get_decoder().layers
    seen: list[Tensor] = []

    def enter(module: Any, args: Any, kwargs: Any) -> Any:
        return (hidden, *args[1:]), kwargs

    def leave(module: Any, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handles = [
        layers[index].register_forward_pre_hook(enter, with_kwargs=True),
        layers[index].register_forward_hook(leave),
    ]
    donor(inputs_embeds=donor.get_input_embeddings()(torch.ones_like(mask)), attention_mask=mask)
    for handle in handles:
        handle.remove()
    return seen[0]


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
