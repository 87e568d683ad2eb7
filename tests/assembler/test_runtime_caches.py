"""Steps on a filled cache equal one pass without a cache: several tokens at once, and rollbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hybridize.architectures.refused import refusal
from hybridize.runtime import HybridForCausalLM
from tests.support.inmemory import assemble, identity
from tests.support.runtime_stacks import STACKS, all_linear, llama_and_olmo_hybrid, llama_and_qwen3
from tests.support.tiny import all_causal_types, tiny_model

STEPS = (6, 3, 1, 4)  # beyond the windows of 4 tokens, and from step to step
IDS = torch.randint(3, 60, (2, sum(STEPS)), generator=torch.Generator().manual_seed(1))
# A lost state shows as 0.3 and more; Mamba-2's two forms differ by 1e-3 in nemotron_h.
CLOSE = {"atol": 3e-3, "rtol": 1e-3}

# Which keys a token sees depends on those after it, without a cache too (ties in a choice of keys).
NOT_CAUSAL = {"deepseek_v32", "doge", "dots3_note_text"}
ACCEPTED = [n for n in all_causal_types() if refusal(n) is None and n not in NOT_CAUSAL]
# Their own classes start again from an empty state, or from position 0.
WRONG_ALONE = {"bamba", "falcon_mamba", "jamba", "mamba", "recurrent_gemma"}
EACH = [n if n in WRONG_ALONE else pytest.param(n, marks=pytest.mark.slow) for n in ACCEPTED]


def mamba_mixers_in_llama() -> HybridForCausalLM:
    donors = {
        "host": tiny_model("llama"),
        "mamba": tiny_model("mamba", seed=1),
        "griffin": tiny_model("recurrent_gemma", seed=2),
    }
    mamba = {"self_attn": {"donor": "mamba", "layer": 0, "module": "mixer"}}
    griffin = {"self_attn": {"donor": "griffin", "layer": 0, "module": "temporal_block"}}
    slots = [{"donor": "host", "layer": i, "swap": s} for i, s in ((1, mamba), (2, griffin))]
    return assemble(donors, [("host", 0), *slots, ("host", 3)])


@torch.no_grad()
def stepwise(
    model: PreTrainedModel, ids: Tensor, steps: Sequence[int], mask: Tensor | None = None
) -> Tensor:
    """Logits of one sequence that is given in several steps, each on the cache of those before."""
    cache, logits, end = DynamicCache(), [], 0
    for count in steps:
        start, end = end, end + count
        options: dict[str, Any] = {} if mask is None else {"attention_mask": mask[:, :end]}
        out = model(ids[:, start:end], past_key_values=cache, use_cache=True, **options)
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("family", EACH)
@torch.no_grad()
def test_several_tokens_on_a_filled_cache_equal_one_pass(family: str) -> None:
    """Chunked prefill and servers that continue a prompt; left-padded rows too."""
    model = identity(tiny_model(family, seed=1))
    torch.testing.assert_close(
        stepwise(model, IDS, STEPS), model(IDS, use_cache=False).logits, **CLOSE
    )
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    ours = stepwise(model, IDS, STEPS, mask)
    plain = model(IDS, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(ours[mask.bool()], plain[mask.bool()], **CLOSE)


@pytest.mark.parametrize("make", [*STACKS, mamba_mixers_in_llama])
@torch.no_grad()
def test_stacks_of_several_donors_continue_a_filled_cache(make: Any) -> None:
    """Swapped mixers, bridges and two windows included."""
    model = make()
    options = CLOSE if model.dtype == torch.float32 else {"atol": 0.06, "rtol": 0.02}
    torch.testing.assert_close(
        stepwise(model, IDS, STEPS), model(IDS, use_cache=False).logits, **options
    )


@pytest.mark.parametrize("make", [all_linear, mamba_mixers_in_llama])
@torch.no_grad()
def test_prefill_in_chunks_generates_the_same(make: Any) -> None:
    """`prefill_chunk_size` of transformers' generate."""
    model = make()
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    chunked = model.generate(IDS, **options, prefill_chunk_size=4)
    assert torch.equal(chunked, model.generate(IDS, **options))


@torch.no_grad()
def test_a_stack_without_attention_counts_its_tokens() -> None:
    """Its donors ask the cache for the length; recurrent entries do not know it."""
    model = all_linear()
    assert model(IDS, use_cache=True).past_key_values.get_seq_length() == IDS.shape[1]


@torch.no_grad()
def test_the_state_of_a_recurrent_gemma_is_in_its_cache() -> None:
    """Two sequences in turn, a prompt of one token, and beams that change places."""
    model = identity(tiny_model("recurrent_gemma"))
    plain = model(IDS, use_cache=False).logits
    caches = [DynamicCache(), DynamicCache()]
    rows = [
        [
            model(IDS[i : i + 1, t : t + 1], past_key_values=cache, use_cache=True).logits
            for i, cache in enumerate(caches)
        ]
        for t in range(5)
    ]
    for i in range(2):
        ours = torch.cat([row[i] for row in rows], dim=1)
        torch.testing.assert_close(ours, plain[i : i + 1, :5], **CLOSE)
    beams = {"num_beams": 3, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached = model.generate(IDS, **beams, use_cache=True)
    assert torch.equal(cached, model.generate(IDS, **beams, use_cache=False))


# ---- rollbacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama_and_olmo_hybrid, all_linear, mamba_mixers_in_llama])
@torch.no_grad()
def test_a_recurrent_state_that_should_go_back_is_refused(make: Any) -> None:
    """Speculation crops the cache; transformers crops attention and convolutions alone."""
    model = make()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    model(IDS, past_key_values=cache, use_cache=True)
    cache.crop(-2)
    with pytest.raises(ValueError, match="this cache was cropped"):
        model(IDS[:, -2:], past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful"):
        model.generate(IDS, assistant_model=llama_and_qwen3(), max_new_tokens=4)


@torch.no_grad()
def test_convolutions_go_back_with_attention() -> None:
    """LFM2 has no state but the last few inputs: assisted generation works."""
    donors = {"llama": tiny_model("llama"), "lfm": tiny_model("lfm2", seed=1)}
    model = assemble(donors, [("llama", 0), ("lfm", 0), ("lfm", 1), ("lfm", 2)])
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    model(IDS, past_key_values=cache, use_cache=True)
    cache.crop(-3)
    again = model(IDS[:, -3:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(again, model(IDS).logits[:, -3:], **CLOSE)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    assisted = model.generate(IDS[:1], assistant_model=llama_and_qwen3(), **options)
    assert torch.equal(assisted, model.generate(IDS[:1], **options))
