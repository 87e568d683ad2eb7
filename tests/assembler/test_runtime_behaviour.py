"""A hybrid behaves as any model of transformers does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import StaticCache, Trainer, TrainingArguments

import hybridize.runtime.modeling_hybridize as runtime_file
from hybridize.architectures.refused import refusal
from hybridize.runtime import HybridForCausalLM
from tests.support.inmemory import assemble, fill, hybrid_config, identity
from tests.support.runtime_stacks import (
    STACKS,
    all_linear,
    llama_and_olmo_hybrid,
    llama_and_qwen3,
    mixer_swapped,
    padded_batch,
    two_windows,
)
from tests.support.tiny import all_causal_types, tiny_model


@pytest.fixture
def model() -> HybridForCausalLM:
    return llama_and_olmo_hybrid()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 60, (2, 8))


# ---- outputs -----------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states_are_the_first_state_and_what_each_slot_gave(model: Any, ids: Tensor) -> None:
    """Diagnostics read them; bridges change the width in between."""
    out = model(ids, output_hidden_states=True)
    assert [h.shape[-1] for h in out.hidden_states] == [64, 64, 96, 96, 96, 96]
    assert torch.equal(out.hidden_states[0], model.model.embed_tokens(ids))
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
    assert model(ids).hidden_states is None


@torch.no_grad()
def test_output_flags_work_by_argument_and_by_config(model: Any, ids: Tensor) -> None:
    """As in every model of transformers."""
    as_dict = model(ids, output_hidden_states=True, use_cache=False)
    as_tuple = model(ids, output_hidden_states=True, use_cache=False, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == 2
    assert torch.equal(as_tuple[0], as_dict.logits)
    model.config.output_hidden_states = True
    model.config.return_dict = False
    model.config.use_cache = False
    by_config = model(ids)
    assert isinstance(by_config, tuple)
    assert len(by_config) == 2
    assert len(by_config[1]) == 6
    assert isinstance(model.model(ids), tuple)
    model.config.use_cache = True
    assert len(model(ids)) == 3


@torch.no_grad()
def test_hidden_states_can_be_selected_by_index(model: Any, ids: Tensor) -> None:
    """transformers allows an index or several, negative ones too."""
    every = model(ids, output_hidden_states=True).hidden_states
    some = model(ids, output_hidden_states=[1, -1]).hidden_states
    assert [state is None for state in some] == [True, False, True, True, True, False]
    assert torch.equal(some[1], every[1])
    assert torch.equal(some[5], every[5])


@torch.no_grad()
def test_use_cache_decides_whether_a_cache_comes_back(model: Any, ids: Tensor) -> None:
    assert model(ids, use_cache=False).past_key_values is None
    assert len(model(ids).past_key_values.layers) == 5
    assert model.eval()(ids, use_cache=True).past_key_values.get_seq_length() == 8


@torch.no_grad()
def test_inputs_embeds_stand_for_input_ids(model: Any, ids: Tensor) -> None:
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    with pytest.raises(ValueError, match="exactly one of"):
        model(ids, inputs_embeds=embeds)


@torch.no_grad()
def test_logits_to_keep_and_loss_are_the_head_donors(ids: Tensor) -> None:
    """Gemma 2 caps its logits; a trainer divides the loss by the tokens of the whole step."""
    donor = tiny_model("gemma2")
    hybrid = identity(donor)
    assert torch.equal(hybrid(ids, logits_to_keep=2).logits, donor(ids).logits[:, -2:])
    for options in ({}, {"num_items_in_batch": 31}):
        ours, theirs = hybrid(ids, labels=ids, **options), donor(ids, labels=ids, **options)
        assert torch.equal(ours.loss, theirs.loss)


@torch.no_grad()
def test_attentions_come_from_every_slot_that_has_attention(ids: Tensor) -> None:
    """By hooks on what the donors' classes declare; linear-attention slots have none."""
    donor = tiny_model("qwen3_next")
    donor.set_attn_implementation("eager")
    hybrid = identity(donor)
    hybrid.set_attn_implementation("eager")
    ours, theirs = hybrid(ids, output_attentions=True), donor(ids, output_attentions=True)
    assert len(ours.attentions) == len(theirs.attentions) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours.attentions, theirs.attentions, strict=True))
    assert torch.equal(ours.logits, hybrid(ids).logits)
    assert not any(m._forward_hooks for m in hybrid.model.layers.modules())


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_next", "gpt_oss"])
@torch.no_grad()
def test_attentions_of_fused_attention_are_what_the_donor_gives(family: str, ids: Tensor) -> None:
    """sdpa never makes the weights: transformers warns and gives none. GPT-OSS is always eager."""
    donor = tiny_model(family)
    hybrid = identity(donor)
    with warning_of(runtime_file.logger) as warned:
        ours = hybrid(ids, output_attentions=True)
    theirs = donor(ids, output_attentions=True)
    assert len(ours.attentions) == len(theirs.attentions)
    assert all(torch.equal(a, b) for a, b in zip(ours.attentions, theirs.attentions, strict=True))
    assert torch.equal(ours.logits, hybrid(ids).logits)
    assert bool(warned) is (donor.config._attn_implementation != "eager")


@contextmanager
def warning_of(logger: Any) -> Iterator[list[str]]:
    """What a module of transformers warns of, each text once."""
    texts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "warning_once", texts.append)
        yield texts


def test_attentions_asked_for_by_the_config_need_eager(model: Any) -> None:
    """As for every config of transformers."""
    with pytest.raises(ValueError, match="output_attentions"):
        model.config.output_attentions = True


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "jamba"])
def test_router_loss_is_the_donors(family: str, ids: Tensor) -> None:
    """Off by default, whatever the donor's config says; on, it is the head donor's own."""
    donor = tiny_model(family, output_router_logits=True)
    hybrid = identity(donor)
    plain = donor(ids, labels=ids, output_router_logits=False).loss
    assert torch.equal(hybrid(ids, labels=ids).loss, plain)
    ours = hybrid(ids, labels=ids, output_router_logits=True)
    theirs = donor(ids, labels=ids, output_router_logits=True)
    assert torch.equal(ours.loss, theirs.loss)
    assert not torch.equal(ours.loss, plain)
    assert len(ours.router_logits) == len(theirs.router_logits)
    hybrid.config.output_router_logits = True
    assert torch.equal(hybrid(ids, labels=ids).loss, theirs.loss)


def test_router_loss_over_another_donors_experts_is_refused(ids: Tensor) -> None:
    """Their numbers of experts differ: the head donor's formula does not fit them."""
    donors = {"moe": tiny_model("mixtral"), "head": tiny_model("llama", seed=1)}
    model = assemble(donors, [("moe", 0), ("head", 1)])
    with pytest.raises(ValueError, match="router"):
        model(ids, labels=ids, output_router_logits=True)
    out = model(ids, output_router_logits=True)
    assert len(out.router_logits) == 1
    assert out.aux_loss is None
    assert torch.equal(out.logits, model(ids).logits)


# ---- modules -----------------------------------------------------------------------------------


@torch.no_grad()
def test_hooks_on_layers_see_and_change_the_stream(model: Any, ids: Tensor) -> None:
    """Capturing, steering and probing work on `model.layers[i]`."""
    seen: list[Tensor] = []
    handle = model.model.layers[1].register_forward_hook(lambda m, a, out: seen.append(out))
    states = model(ids, output_hidden_states=True).hidden_states
    first = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert torch.equal(first, states[2])
    handle.remove()
    before = model(ids).logits
    with model.model.layers[0].register_forward_pre_hook(lambda m, args: (args[0] * 2, *args[1:])):
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("tie", [False, True])
def test_resized_embeddings_work_and_survive_a_reload(tie: bool, tmp_path: Path) -> None:
    """New tokens for a new domain; the loss is counted over the new vocabulary."""
    donor = tiny_model("qwen3", tie_word_embeddings=tie)
    model = identity(donor, tie=tie)
    model.resize_token_embeddings(80)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tie
    ids = torch.randint(60, 80, (2, 6))
    out = model(ids, labels=ids)
    assert out.logits.shape[-1] == model.config.vocab_size == 80
    model.save_pretrained(tmp_path)
    again = HybridForCausalLM.from_pretrained(tmp_path)
    assert again.config.vocab_size == 80
    assert torch.equal(again(ids, labels=ids).loss, out.loss)


@torch.no_grad()
def test_a_copy_is_independent_and_a_pickle_is_equal(ids: Tensor) -> None:
    """EMA teachers copy models, multiprocessing pickles them."""
    for make in (llama_and_olmo_hybrid, mixer_swapped):
        model = make()
        logits = model(ids).logits
        twin, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(twin(ids).logits, logits)
        assert torch.equal(pickled(ids).logits, logits)


def test_tied_weights_are_one_tensor(ids: Tensor) -> None:
    """Its gradient is the sum of both uses."""
    donor = tiny_model("llama", tie_word_embeddings=True)
    tied, untied = identity(donor, tie=True), identity(donor)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    for model in (tied, untied):
        model(ids, labels=ids).loss.backward()
    both = untied.lm_head.weight.grad + untied.model.embed_tokens.weight.grad
    torch.testing.assert_close(tied.model.embed_tokens.weight.grad, both)


@pytest.mark.parametrize("make", [llama_and_olmo_hybrid, mixer_swapped])
def test_several_threads_may_use_one_model(make: Any) -> None:
    """A server answers requests of different lengths at a time."""
    model = make()
    batches = [torch.randint(3, 60, (1, n)) for n in (3, 9, 5, 12)] * 3
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        alone = [model(ids).logits for ids in batches]
        together = list(pool.map(lambda ids: model(ids).logits.detach(), batches))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_data_parallel_is_refused(model: Any, ids: Tensor) -> None:
    """Its copies would share one set of recorders and the first copy's embedding."""
    model.model._is_replica = True
    with pytest.raises(RuntimeError, match="torchrun"):
        model(ids)


@torch.no_grad()
def test_attention_switch_reaches_every_layer_and_skeleton(ids: Tensor) -> None:
    """At load and later; masks and layers must agree on it. Repeated layers are copies."""
    donors = {"a": tiny_model("llama"), "b": tiny_model("qwen3", seed=1)}
    model = assemble(donors, [("a", 1), ("a", 1), ("b", 0), ("b", 1)])
    batch = padded_batch()
    fused = model(**batch).logits
    model.set_attn_implementation("eager")
    attentions = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
    assert len(attentions) == 4
    assert {m.config._attn_implementation for m in attentions} == {"eager"}
    assert {d.config._attn_implementation for d in model.model.donors.values()} == {"eager"}
    real = batch["attention_mask"].bool()  # what stands at padded places is nobody's promise
    torch.testing.assert_close(model(**batch).logits[real], fused[real], atol=1e-5, rtol=1e-4)
    loaded = hybrid_config(donors, [("a", 1), ("b", 1)], attn_implementation="eager")
    donors_at_load = HybridForCausalLM(loaded).model.donors.values()
    assert {d.config._attn_implementation for d in donors_at_load} == {"eager"}


def test_a_donor_keeps_eager_where_it_has_nothing_else() -> None:
    """GPT-OSS has no sdpa (attention sinks): the other donor keeps it all the same."""
    donors = {"oss": tiny_model("gpt_oss"), "llama": tiny_model("llama", seed=1)}
    model = assemble(donors, [("oss", 0), ("llama", 1)])
    model.set_attn_implementation("eager")
    model.set_attn_implementation("sdpa")
    kinds = {n: d.config._attn_implementation for n, d in model.model.donors.items()}
    assert kinds == {"oss": "eager", "llama": "sdpa"}


# ---- training ----------------------------------------------------------------------------------


def test_lora_trains_its_adapters_alone(model: Any, ids: Tensor) -> None:
    """PEFT wraps projections, the head and saved modules by replacing them."""
    config = LoraConfig(target_modules=["q_proj", "down_proj", "lm_head"], r=2, lora_alpha=64)
    before = model(ids).logits
    tuned = get_peft_model(model, config)
    assert torch.equal(tuned(ids).logits, before)
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(4):
        loss = tuned(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = {n.split(".lora")[0] for n, p in tuned.named_parameters() if p.requires_grad}
    assert any("lm_head" in n for n in trained)
    assert all("lora" in n for n, p in tuned.named_parameters() if p.requires_grad)


def test_a_trainer_steps_with_checkpointing_and_accumulation(model: Any, tmp_path: Path) -> None:
    """transformers' own Trainer, as continued pre-training uses it."""
    rows = [{"input_ids": r, "labels": r} for r in torch.randint(3, 60, (8, 6))]
    before = {n: p.clone() for n, p in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=0.01,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    result = Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert 0 < result.training_loss < 10
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("make", [llama_and_qwen3, llama_and_olmo_hybrid])
def test_a_compiled_step_equals_the_plain_one(make: Any, ids: Tensor) -> None:
    """`torch.compile` of the training step, in one graph where no donor breaks it."""
    model = make().train()
    model(ids, labels=ids, use_cache=False).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    torch._dynamo.reset()
    # OlmoHybrid alone fails in aot_eager too: a view of torch's own softplus_backward.
    backend = "aot_eager" if make is llama_and_qwen3 else "eager"
    compiled = torch.compile(model, backend=backend, fullgraph=make is llama_and_qwen3)
    compiled(ids, labels=ids, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", STACKS)
@torch.no_grad()
def test_a_graph_that_breaks_loses_nothing(make: Any, ids: Tensor) -> None:
    """In the middle of each slot, inside what is swapped, and in the search for what to record."""
    model = make()
    model.set_attn_implementation("eager")
    cache = partial(StaticCache, config=model.config, max_cache_len=16)
    options = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}
    plain = model(ids, **options, past_key_values=cache())
    for name, module in model.model.layers.named_modules():
        if name and any(True for _ in module.children()):
            module.register_forward_pre_hook(break_graph)
    torch._dynamo.reset()
    ours = torch.compile(model, backend="eager")(ids, **options, past_key_values=cache())
    for key in ("attentions", "hidden_states"):
        assert len(ours[key]) == len(plain[key])
        torch.testing.assert_close(ours[key], plain[key], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.logits, plain.logits, atol=1e-4, rtol=1e-4)


def break_graph(module: Any, args: Any) -> None:
    torch._dynamo.graph_break()


# ---- caches ------------------------------------------------------------------------------------


def other_heads() -> HybridForCausalLM:
    """Keys of another number and of another size in each donor."""
    donors = {
        "few": tiny_model("llama", num_key_value_heads=2, head_dim=8),
        "many": tiny_model("llama", seed=1, num_key_value_heads=4, head_dim=16),
    }
    return assemble(donors, [("few", 0), ("many", 1), ("few", 2), ("many", 3)])


def read_out_by_mamba() -> HybridForCausalLM:
    """The head donor's `head_dim` is that of its states, not of anybody's keys."""
    donors = {"llama": tiny_model("llama"), "mamba": tiny_model("mamba2", seed=1)}
    return assemble(donors, [("llama", 0), ("mamba", 1), ("llama", 1), ("mamba", 2)])


def latent_and_plain() -> HybridForCausalLM:
    donors = {"latent": tiny_model("deepseek_v3"), "llama": tiny_model("llama", seed=1)}
    return assemble(donors, [("latent", 0), ("llama", 1), ("latent", 2)])


HEADS = [other_heads, read_out_by_mamba, latent_and_plain]
QUICK = {llama_and_qwen3, two_windows, all_linear, *HEADS}
ALL = [*STACKS, *HEADS]
EACH = [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in ALL]


@pytest.mark.parametrize("make", EACH)
@torch.no_grad()
def test_a_static_cache_generates_what_a_dynamic_one_does(make: Any) -> None:
    """Fixed shapes, for compiled decoding; a prefill in chunks makes them before it sees keys."""
    model = make()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    batch = padded_batch()
    dynamic = model.generate(**batch, **options)
    options |= {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(model.generate(**batch, **options), dynamic)
    assert torch.equal(model.generate(**batch, **options, prefill_chunk_size=4), dynamic)


# Their own classes fail so, too: transformers expects keys of another shape.
OTHER_KEYS = {"dots3_note_text", "falcon", "gpt_bigcode", "mimo_v2_flash"}
# A static cache gives other numbers than a dynamic one in their own classes, too.
OTHER_ALONE = {"axk2", "gpt_neo", "inkling_text"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [n for n in all_causal_types() if refusal(n) is None and n not in OTHER_ALONE]
)
@torch.no_grad()
def test_a_static_cache_has_room_for_the_keys_of_each_slot(family: str) -> None:
    """Beside llamas with eight heads of four."""
    donor = tiny_model(family, seed=1)
    width, depth = donor.config.hidden_size, donor.config.num_hidden_layers
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4}
    donors = {"llama": tiny_model("llama", hidden_size=width, **heads), "x": donor}
    slots = [("x", 0), ("llama", 0), *(("x", i) for i in range(1, depth)), ("llama", 1)]
    model = assemble(donors, slots, embeddings="x", head="x")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = padded_batch()["input_ids"]
    dynamic = model.generate(ids, **options)
    options |= {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(model.generate(ids, **options), dynamic)
    if family not in OTHER_KEYS:
        assert torch.equal(model.generate(ids, **options, prefill_chunk_size=4), dynamic)


@torch.no_grad()
def test_what_slots_differ_in_is_not_told_of_the_whole_model() -> None:
    """Whoever makes room for keys (transformers, PEFT) reads each layer's own shape."""
    shapes = [(2, 8), (4, 16), (2, 8), (4, 16)]
    config = other_heads().config
    assert [(c.num_key_value_heads, c.head_dim) for c in config.per_layer_config] == shapes
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        _ = config.head_dim
    again = type(config).from_dict(config.to_dict())
    assert [(c.num_key_value_heads, c.head_dim) for c in again.per_layer_config] == shapes
    llama = tiny_model("llama").config
    shared = read_out_by_mamba().config
    assert (shared.num_key_value_heads, shared.head_dim) == (
        llama.num_key_value_heads,
        llama.head_dim,
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", STACKS)
@torch.no_grad()
def test_a_step_of_decoding_compiles_into_one_graph(make: Any, ids: Tensor) -> None:
    """With a static cache; two donors' masks, views of the cache and recorders included."""
    model = make()
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(ids, past_key_values=cache, use_cache=True)
    twin = copy.deepcopy(cache)
    step = {"input_ids": ids[:, :1], "position_ids": torch.full((2, 1), 8), "use_cache": True}
    plain = model(**step, past_key_values=twin).logits
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(**step, past_key_values=cache).logits, plain, atol=1e-4, rtol=1e-4
    )


def test_a_hybrid_says_whether_it_compiles_into_one_graph_as_its_donors_do() -> None:
    """RecurrentGemma says that it does not; whoever exports a model asks for it."""
    donors = {"llama": tiny_model("llama"), "other": tiny_model("recurrent_gemma", seed=1)}
    assert llama_and_qwen3()._can_compile_fullgraph
    assert not assemble(donors, [("llama", 0), ("other", 1)])._can_compile_fullgraph


@torch.no_grad()
def test_a_static_cache_can_be_reset_and_used_again(ids: Tensor) -> None:
    model = llama_and_qwen3()
    cache = StaticCache(config=model.config, max_cache_len=16)
    first = model(ids, past_key_values=cache, use_cache=True).logits
    cache.reset()
    assert torch.equal(model(ids, past_key_values=cache, use_cache=True).logits, first)


@torch.no_grad()
def test_a_cache_can_be_cropped_for_speculation(ids: Tensor) -> None:
    """Assisted decoding takes back what the large model did not accept."""
    model = llama_and_qwen3()
    out = model(ids, use_cache=True)
    out.past_key_values.crop(-3)
    again = model(ids[:, 5:], past_key_values=out.past_key_values, use_cache=True).logits
    torch.testing.assert_close(again, model(ids).logits[:, 5:], atol=1e-5, rtol=1e-4)


def test_filling_twice_changes_nothing() -> None:
    """The helper that all these tests build on."""
    donor = tiny_model("llama")
    model = identity(donor)
    before = {n: p.clone() for n, p in model.named_parameters()}
    fill(model, {"only": donor.state_dict()})
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_class_names_switch_nothing_in_generate() -> None:
    """transformers looks for parts of names (rwkv, xlstm, minimax, ...) to tell caches apart."""
    assert HybridForCausalLM._supports_default_dynamic_cache()
    words = ("mamba", "minimax", "xlstm", "rwkv", "reformer", "xlnet")
    assert not any(word in HybridForCausalLM.__name__.lower() for word in words)
