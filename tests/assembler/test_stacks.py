"""Stacks of differing donors compute what their layers compute when they are run by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support.stacks import UNFITTED, build_in, generate, load, save_donor, tokens

Picks = Sequence[tuple[str, int]]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    base = model.base_model
    return next(m for m in base.children() if isinstance(m, nn.ModuleList))


def final_norm(model: PreTrainedModel) -> nn.Module:
    base = model.base_model
    return next(m for n, m in base.named_children() if n in ("norm", "final_layernorm", "norm_f"))


def calls(model: PreTrainedModel, mask: Tensor, width: int) -> list[tuple[Any, Any, Any]]:
    """What a donor's own forward hands to each of its layers: (hidden, args, kwargs)."""
    noted: list[tuple[Any, Any, Any]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        noted.append((args[0] if args else kwargs.pop("hidden_states"), args[1:], kwargs))

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in layers_of(model)]
    try:
        model(inputs_embeds=torch.zeros(*mask.shape, width), attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return noted


@torch.no_grad()
def by_hand(
    donors: dict[str, PreTrainedModel],
    picks: Picks,
    bridges: dict[int | str, Tensor],
    mask: Tensor,
    ids: Tensor,
) -> Tensor:
    """Logits of a stack, its layers called one after another."""
    noted = {n: calls(m, mask, m.config.hidden_size) for n, m in donors.items()}
    first, last = donors[picks[0][0]], donors[picks[-1][0]]
    hidden = first.get_input_embeddings()(ids)
    for i, (name, j) in enumerate(picks):
        if i in bridges:
            hidden = hidden @ bridges[i].T
        _, args, kwargs = noted[name][j]
        out = layers_of(donors[name])[j](hidden, *args, **kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
    logits: Tensor = last.get_output_embeddings()(final_norm(last)(hidden))
    return logits


LAYOUTS: dict[str, tuple[dict[str, dict[str, Any]], list[tuple[str, int]], str]] = {
    # donors (type and overrides), slots, target that is expected
    "llama and qwen3 at one width": (
        {"llama": {}, "qwen3": {}},
        [("llama", 0), ("llama", 1), ("qwen3", 1), ("qwen3", 3), ("llama", 3)],
        "hybrid",
    ),
    "llama and olmo_hybrid at two widths": (
        {"llama": {"hidden_size": 64}, "olmo_hybrid": {"hidden_size": 96}},
        [("llama", 0), ("llama", 1), *(("olmo_hybrid", j) for j in range(4)), ("llama", 3)],
        "hybrid",
    ),
    "qwen3, deeper": ({"qwen3": {}}, [("qwen3", j) for j in (0, 1, 2, 1, 2, 3)], "native"),
    "qwen3, shallower": ({"qwen3": {}}, [("qwen3", j) for j in (0, 3)], "native"),
    "gemma3, shifted": ({"gemma3_text": {}}, [("gemma3_text", j) for j in (1, 2, 3)], "native"),
    "gemma3, deeper": (
        {"gemma3_text": {}},
        [("gemma3_text", j) for j in (0, 1, 1, 2, 3, 3)],
        "native",
    ),
    "olmo_hybrid, permuted": ({"olmo_hybrid": {}}, [("olmo_hybrid", j) for j in (3, 0, 2, 1)], ""),
    "jamba, permuted": ({"jamba": {}}, [("jamba", j) for j in (3, 0, 2, 1)], ""),
    "jamba, reversed": ({"jamba": {}}, [("jamba", j) for j in (3, 2, 1, 0)], ""),
    "qwen3_next, permuted": ({"qwen3_next": {}}, [("qwen3_next", j) for j in (3, 0, 2, 1)], ""),
    "qwen3_next, repeated": (
        {"qwen3_next": {}},
        [("qwen3_next", j) for j in (0, 0, 1, 2, 3, 3)],
        "",
    ),
    "mamba2 below llama": (
        {"mamba2": {}, "llama": {}},
        [("mamba2", 0), ("mamba2", 1), ("llama", 2), ("llama", 3)],
        "hybrid",
    ),
}


def recipe(layout: str, folder: Path, **more: Any) -> dict[str, Any]:
    donors, picks, _ = LAYOUTS[layout]
    for name, overrides in donors.items():
        save_donor(folder / name, name, **overrides)
    return {
        "donors": {name: {"model": name} for name in donors},
        "slots": [{"from": name, "layer": j} for name, j in picks],
        "bridges": UNFITTED,
        **more,
    }


@pytest.mark.parametrize("target", ["auto", "hybrid"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stack_is_its_layers_run_by_hand(tmp_path: Path, layout: str, target: str) -> None:
    names, picks, expected = LAYOUTS[layout]
    built = build_in(tmp_path, recipe(layout, tmp_path, target=target))
    if target == "auto" and expected:
        assert built.plan.target == expected
    got = load(built.folder)
    bridges: dict[int | str, Tensor] = {}
    if built.plan.bridges:
        state = got.state_dict()
        bridges = {int(w): state[f"model.bridges.{w}.proj.weight"] for w in built.plan.bridges}
    donors = {name: load(tmp_path / name) for name in names}
    ids, mask = tokens()
    for m in (torch.ones_like(mask), mask):
        with torch.no_grad():
            mine = got(ids, attention_mask=m).logits
        reference = by_hand(donors, picks, bridges, m, ids)
        assert torch.equal(mine[m.bool()], reference[m.bool()])


CROSS = [name for name, (_, _, expected) in LAYOUTS.items() if expected == "hybrid"]


@pytest.mark.parametrize("layout", CROSS)
def test_generation_with_cache_equals_generation_without(tmp_path: Path, layout: str) -> None:
    """A batch of two with left padding, greedily."""
    model = load(build_in(tmp_path, recipe(layout, tmp_path)).folder)
    cached, plain = generate(model), generate(model, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    for a, b in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", CROSS)
def test_gradients_flow_and_checkpointing_changes_none(tmp_path: Path, layout: str) -> None:
    model = load(build_in(tmp_path, recipe(layout, tmp_path)).folder).train()
    ids, mask = tokens()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients[0].items():
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@pytest.mark.parametrize("layout", CROSS)
def test_saving_and_loading_again_changes_nothing(tmp_path: Path, layout: str) -> None:
    model = load(build_in(tmp_path, recipe(layout, tmp_path)).folder)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    ids, mask = tokens()
    with torch.no_grad():
        assert torch.equal(
            again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits
        )
    half = type(model).from_pretrained(tmp_path / "again", dtype=torch.bfloat16).eval()
    assert half.dtype == torch.bfloat16
    with torch.no_grad():
        logits = half(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
