"""A model run slot by slot is the model, and shares its weights with its donors' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from hybridize.model.donors import load_donor
from hybridize.model.states import State
from hybridize.torch_model import stream as streams
from hybridize.torch_model.loading import Weights
from hybridize.torch_model.stream import Stream
from tests.support.stacks import build_in, load, save_donor

TYPES = ["llama", "gemma2", "qwen3_next", "mamba2", "jamba", "olmo_hybrid", "gpt2"]


def weights(folder: Path, *names: str) -> Weights:
    return Weights(
        {n: load_donor(folder / n, name=n, source=n, place=n) for n in names},
    )


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows, the second padded on the right."""
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return ids, mask


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_states_and_losses_are_those_of_transformers(
    tmp_path: Path, batch: tuple[torch.Tensor, torch.Tensor], model_type: str
) -> None:
    save_donor(tmp_path / "only", model_type)
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "only").eval()
    ids, mask = batch
    stream = Stream(weights(tmp_path, "only").alone("only"), ids, mask)
    arrived: list[torch.Tensor] = []  # not output_hidden_states: some keep what leaves a layer
    for layer in next(
        m for m in native.modules() if isinstance(m, nn.ModuleList) and len(m) == stream.depth
    ):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: arrived.append([*args, *kwargs.values()][0]), with_kwargs=True
        )
    out = native(ids, attention_mask=mask, use_cache=False)
    states = stream.read(*(State(i) for i in range(stream.depth)))
    for mine, theirs in zip(states, arrived, strict=True):
        assert torch.equal(mine[mask.bool()], theirs[mask.bool()])
    logp = out.logits.float().log_softmax(-1)[:, :-1]
    nats = -logp.gather(-1, ids[:, 1:, None])[..., 0].double() * mask[:, 1:]
    found = stream.nats(stream.run(stream.first, 0, stream.depth))
    assert torch.allclose(found, nats.sum(1), rtol=1e-6)


@torch.no_grad()
def test_a_run_can_stop_and_go_on(
    tmp_path: Path, batch: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_donor(tmp_path / "a", "llama")
    save_donor(tmp_path / "b", "qwen3", hidden_size=48)
    built = build_in(
        tmp_path,
        {
            "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
            "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "0-1"}],
            "bridges": {"init": "random"},
        },
    )
    model: Any = load(built.folder)
    ids, mask = batch
    stream = Stream(model, ids, mask)
    (half,) = stream.read(State(2))
    assert half.shape[-1] == 32  # as it arrives, before the bridge
    whole = stream.run(stream.first, 0, 4)
    assert torch.equal(stream.run(half, 2, 4), whole)
    crossed = stream.stack.cross(2, half, half.dtype)
    assert crossed.shape[-1] == 48
    assert torch.equal(stream.run(crossed, 2, 4, crossed=True), whole)
    logp = model(ids, attention_mask=mask).logits.float().log_softmax(-1)[:, :-1]
    nats = -logp.gather(-1, ids[:, 1:, None])[..., 0].double() * mask[:, 1:]
    assert torch.allclose(stream.nats(whole), nats.sum(1), rtol=1e-6)
    monkeypatch.setattr(streams, "LOGITS", 300)  # a wide vocabulary: few positions at a time
    assert torch.allclose(stream.nats(whole), nats.sum(1), rtol=1e-6)


@torch.no_grad()
def test_what_goes_into_a_module_and_out_of_it(
    tmp_path: Path, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    save_donor(tmp_path / "only", "llama")
    native: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "only").eval()
    ids, mask = batch
    seen: dict[str, torch.Tensor] = {}
    layer = native.model.layers[1]
    layer.self_attn.register_forward_hook(
        lambda module, args, kwargs, out: seen.update(into=kwargs["hidden_states"], out=out[0]),
        with_kwargs=True,
    )
    native(ids, attention_mask=mask)
    stream = Stream(weights(tmp_path, "only").alone("only"), ids, mask)
    into, out, before = stream.read(State(1, "self_attn"), State(1, "self_attn", "out"), State(1))
    real = mask.bool()
    assert torch.equal(into[real], seen["into"][real])
    assert torch.equal(out[real], seen["out"][real])
    assert torch.equal(layer.input_layernorm(before)[real], into[real])


def test_models_share_one_copy_of_the_weights(tmp_path: Path) -> None:
    """A donor alone and a hybrid of it: the same memory, and that of the file."""
    save_donor(tmp_path / "only", "llama")
    shared = weights(tmp_path, "only")
    one, two = shared.alone("only"), shared.alone("only")
    theirs = dict(two.named_parameters())
    for name, tensor in one.named_parameters():
        assert tensor.data_ptr() == theirs[name].data_ptr(), name
        assert not tensor.requires_grad
