"""The tiny donors show what the other tests rely on: every kind of layer, and no silent tensor."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import FAMILIES, all_causal_types, tiny_config, tiny_model

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_family_shows_in_its_logits(family: str) -> None:
    """Else a build could lose a tensor without any test of logits noticing."""
    model = tiny_model(family)
    logits = model(input_ids=IDS, use_cache=False).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.3
    logits.square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    buffers = {name for name, _ in model.named_buffers()} & set(model.state_dict())
    for name in buffers:  # a router's correction: it chooses, and has no gradient
        with torch.no_grad():
            model.get_buffer(name).sub_(model.get_buffer(name).roll(1).mul(3.0))
            if torch.equal(model(input_ids=IDS, use_cache=False).logits, logits):
                silent.append(name)
    assert not silent


@pytest.mark.parametrize("family", FAMILIES)
def test_seeds_reproduce_and_differ_in_every_tensor(family: str) -> None:
    """Two donors of one family must not share a tensor by accident."""
    first, again, other = (tiny_model(family, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not [name for name in first if torch.equal(first[name], other[name])]


def test_types_are_decoder_only_language_models() -> None:
    """The sweep over all architectures promises neither BERT's nor Whisper's causal heads."""
    types = all_causal_types()
    assert set(FAMILIES) <= set(types)
    assert not {"bert", "bart", "whisper", "trocr", "gemma3", "musicgen"} & set(types)
    assert len(types) > 100


def test_overrides_reach_the_config() -> None:
    """Tests of disagreeing donors set one field."""
    assert tiny_config("llama", rms_norm_eps=0.5).rms_norm_eps == 0.5
