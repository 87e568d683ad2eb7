"""Stacks of several donors, in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybridize.runtime import HybridForCausalLM
from tests.support.inmemory import assemble
from tests.support.tiny import tiny_model


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
