"""The training's own forward: the loss and gradients of transformers, with less kept for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hybridize.cpt.data.blocks import IGNORED
from hybridize.cpt.plan.model_tensors import read_model_tensors
from hybridize.cpt.plan.policy import Entry, resolve
from hybridize.cpt.train import forward as forwards
from hybridize.cpt.train.forward import (
    Forward,
    checkpoint_slots,
    compile_slots,
    narrow_norms,
    share_masks,
)
from hybridize.cpt.train.isolation import isolates
from hybridize.cpt.train.trainable_model import open_model
from tests.support.forwards import gradients, of_transformers, opened, rows
from tests.support.stacks import UNFITTED, build_in, load, save_donor
from tests.support.tiny import FAMILIES, tiny_model

SCALED = ("gemma2", "granite", "falcon_h1", "glm4", "gpt2", "mixtral", "deepseek_v3", "mamba2")


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=[] if name in (*SCALED, "llama") else [pytest.mark.slow])
        for name in FAMILIES
    ],
)
def test_loss_and_gradients_are_those_of_transformers(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunked, with the head donor's own scaling, whatever its names are on disk."""
    monkeypatch.setattr(forwards, "head_positions", lambda vocabulary: 5)
    save_donor(tmp_path, model_type)
    tuned, forward = opened(tmp_path, "full")
    loss, wanted = of_transformers(load(tmp_path))
    ids, labels = rows()
    out = forward(ids, labels)
    assert out["loss"].item() == pytest.approx(loss, rel=1e-5)
    assert float(out["nats"].sum()) == pytest.approx(loss, rel=1e-5)
    # On disk Nemotron-H has another prefix than in memory.
    found, wanted = (
        {name.replace("backbone.", "model.", 1): grad for name, grad in grads.items()}
        for grads in (gradients(tuned, forward), wanted)
    )
    shared = wanted.keys() & found.keys()
    assert len(shared) > len(wanted) / 2  # experts lie one by one on disk
    for name in shared:
        torch.testing.assert_close(found[name], wanted[name], rtol=2e-4, atol=2e-5)


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    """Two architectures and widths, with a bridge before slot 2."""
    save_donor(tmp_path / "low", "llama")
    save_donor(tmp_path / "high", "qwen3", seed=1, hidden_size=48)
    recipe = {
        "donors": {"low": {"model": "low"}, "high": {"model": "high"}},
        "slots": [{"from": "low", "layers": "0-1"}, {"from": "high", "layers": "0-1"}],
        "bridges": UNFITTED,
    }
    build_in(tmp_path, recipe)
    return tmp_path / "out"


@pytest.mark.parametrize("entry", ["bridges", {"shallow": 1}, {"deep": 1}, "head", "embeddings"])
def test_what_learns_has_the_gradients_that_it_has_when_all_learns(
    hybrid: Path, entry: Entry
) -> None:
    every = gradients(*opened(hybrid, "full"))
    some = gradients(*opened(hybrid, entry))
    assert some
    for name, grad in some.items():
        torch.testing.assert_close(grad, every[name], rtol=1e-5, atol=1e-6)


def test_nothing_is_kept_for_the_backward_pass_below_what_learns(hybrid: Path) -> None:
    """And no gradient is made there: the state that arrives needs none."""
    tuned, forward = opened(hybrid, "bridges")
    seen: dict[int, bool] = {}
    for i, layer in enumerate(tuned.model.model.layers):

        def note(module: Any, args: Any, output: Any, i: int = i) -> None:
            seen[i] = (output[0] if isinstance(output, tuple) else output).requires_grad

        layer.register_forward_hook(note)
    forward(*rows())
    assert seen == {0: False, 1: False, 2: True, 3: True}


def test_a_prefix_from_elsewhere_gives_the_same_bits(hybrid: Path) -> None:
    tuned, forward = opened(hybrid, "bridges", start=2)
    ids, _ = rows()
    whole = gradients(tuned, forward)
    prefix = forward.below(ids)
    calls = []
    for layer in tuned.model.model.layers:
        layer.register_forward_hook(lambda module, *_: calls.append(module))
    again = gradients(tuned, forward, prefix=prefix)
    assert len(calls) == 2
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("entry", ["bridges", {"shallow": 1}, "full"])
def test_checkpointing_repeats_what_is_above_what_learns_alone(hybrid: Path, entry: Entry) -> None:
    tuned, forward = opened(hybrid, entry)
    tuned.model.train()
    plain = gradients(tuned, forward)
    first = resolve(read_model_tensors(hybrid), [entry]).first_trained_slot
    checkpoint_slots(tuned.model, first)
    times = [0] * 4
    for i, layer in enumerate(tuned.model.model.layers):

        def note(module: Any, args: Any, i: int = i) -> None:
            times[i] += 1

        inner = next(m for m in layer.modules() if m is not layer)
        inner.register_forward_pre_hook(note)
    again = gradients(tuned, forward)
    assert times == [1 if i < first else 2 for i in range(4)]
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_norms_that_learn_give_what_frozen_ones_give(tmp_path: Path) -> None:
    """In bf16: an fp32 gain does not widen the stream, or what the matrices behind it keep."""
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    tuned, forward = opened(tmp_path, "norms", "embeddings")
    assert tuned.half
    narrow_norms(tuned)
    seen = []
    for layer in tuned.model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
        layer.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    grads = gradients(tuned, forward)
    assert set(seen) == {torch.bfloat16}
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    frozen = Forward(open_model(tmp_path, "cpu"))
    with torch.no_grad():
        losses = [float(f(*rows())["loss"]) for f in (forward, frozen)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.slow
def test_compiled_slots_give_the_same_gradients(hybrid: Path) -> None:
    tuned, forward = opened(hybrid, "full")
    plain = gradients(tuned, forward)
    compile_slots(tuned.model)
    again = gradients(tuned, forward)
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-4, atol=1e-5)


def test_no_more_logits_than_a_chunk_are_there_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwards, "head_positions", lambda vocabulary: 4)
    save_donor(tmp_path, "llama")
    tuned, forward = opened(tmp_path, {"shallow": 1})
    sizes = []
    read = forwards._nats

    def counted(logits: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(logits))
        return read(logits, targets)

    monkeypatch.setattr(forwards, "_nats", counted)
    gradients(tuned, forward)
    assert max(sizes) == 4
    assert sum(sizes) == 2 * 11 - 3  # each position once: the backward pass reads none out again


@pytest.mark.parametrize("model_type", ["llama", "qwen3_next", "olmo_hybrid", "mamba2"])
def test_documents_of_a_batch_do_not_see_each_other(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing document A changes no logit of document B: packed where positions tell them apart,
    each in a row of its own where a slot is recurrent (GatedDeltaNet, Mamba)."""
    save_donor(tmp_path, model_type)
    tuned, _ = opened(tmp_path, "full")
    packed = isolates(tuned, 16)
    assert packed is (model_type == "llama")
    generator = torch.Generator().manual_seed(5)
    one, other, changed = torch.randint(3, 60, (3, 8), generator=generator)
    read = forwards._nats
    logits: list[Tensor] = []  # of document B alone: nothing of A is to be predicted

    def kept(found: Tensor, targets: Tensor) -> Tensor:
        logits.append(found.detach())
        return read(found, targets)

    monkeypatch.setattr(forwards, "_nats", kept)
    for first in (one, changed):
        if packed:
            ids = torch.cat([first, other])[None]
            labels = torch.cat([torch.full_like(first, IGNORED), other])[None]
            labels[0, 8] = IGNORED
            positions = torch.arange(8).repeat(2)[None]
        else:
            ids, positions = torch.stack([first, other]), None
            labels = torch.stack([torch.full_like(first, IGNORED), other])
        Forward(tuned)(ids, labels, positions)
    assert len(logits[0]) == 7
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)
    assert float(logits[0].std()) > 0.1


@pytest.mark.parametrize("half", [False, True])
def test_layers_share_one_mask_of_numbers(
    tmp_path: Path, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where documents are kept apart: same loss and gradients, one mask kept for the way back."""
    save_donor(tmp_path, "llama", dtype=torch.bfloat16 if half else torch.float32)
    tuned, forward = opened(tmp_path, "full")
    ids, labels = torch.cat([rows()[0]] * 2, 1), torch.cat([rows()[1]] * 2, 1)
    positions = torch.arange(12).repeat(2)[None].expand(2, -1)

    def run() -> tuple[Tensor, list[Tensor], set[int]]:
        kept: set[int] = set()

        def keep(tensor: Tensor) -> Tensor:
            if tensor.shape[-2:] == (24, 24):
                kept.add(tensor.untyped_storage().data_ptr())
            return tensor

        tuned.model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = forward(ids, labels, positions)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), [p.grad for p in tuned.model.parameters() if p.grad is not None], kept

    # A training of this process may have shared them already.
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", sdpa_attention_forward)
    loss, gradients, kept = run()
    share_masks()
    shared = run()
    assert torch.equal(loss, shared[0])
    assert all(torch.equal(a, b) for a, b in zip(gradients, shared[1], strict=True))
    assert len(shared[2]) == 1 < len(kept)
