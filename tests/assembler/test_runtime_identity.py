"""All layers of one donor, in order, are that donor: bit for bit, in every way of running it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.inmemory import identity
from tests.support.tiny import FAMILIES, tiny_model

# Mamba's own classes leave the embedding out of hidden_states and have the last slot twice.
OWN_HIDDEN_STATES = {"mamba", "mamba2", "falcon_mamba"}


def padded_batch() -> dict[str, Tensor]:
    """Two rows of 11 tokens; the first is padded on the left."""
    ids = torch.randint(3, 60, (2, 11))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_identity_gives_the_donors_logits_loss_and_states(family: str) -> None:
    """Whoever trusts a hybrid: the runtime adds nothing and loses nothing."""
    donor = tiny_model(family)
    hybrid = identity(donor)
    batch = padded_batch()
    ours, theirs = hybrid(**batch, use_cache=True), donor(**batch, use_cache=True)
    assert torch.equal(ours.logits, theirs.logits)

    ids = batch["input_ids"]
    ours = hybrid(ids, labels=ids, output_hidden_states=True)
    theirs = donor(ids, labels=ids, output_hidden_states=True)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)
    if family not in OWN_HIDDEN_STATES:
        assert len(ours.hidden_states) == len(theirs.hidden_states)
        pairs = zip(ours.hidden_states, theirs.hidden_states, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


# The build's own identity test generates with every family.
QUICK = {"llama", "gemma3_text", "mamba", "qwen3_next", "falcon_h1", "gpt2"}
EACH = [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]


@pytest.mark.parametrize("family", EACH)
def test_identity_generates_the_donors_tokens_and_logits(family: str) -> None:
    """Cached decoding beyond the sliding windows (4 tokens), with left padding."""
    donor = tiny_model(family)
    hybrid = identity(donor)
    options = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "use_cache": True}
    details = {"return_dict_in_generate": True, "output_logits": True}
    batch = padded_batch()
    ours = hybrid.generate(**batch, **options, **details)
    theirs = donor.generate(**batch, **options, **details)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))
