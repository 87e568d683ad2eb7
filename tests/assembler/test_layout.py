"""The list of a hybrid's tensors: complete, exact, and refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from hybridize.assembler.worker.worker import LocalWorker
from hybridize.errors import HybridizeError
from hybridize.torch_model.layout import OutTensor, check_names, hybrid_layout, keep_fp32_names
from hybridize.torch_model.symbolic import NotBytewise, Piece, Symbolic
from tests.support.inmemory import as_disk, assemble, depth, gather, hybrid_config, identity
from tests.support.tiny import FAMILIES, tiny_model


def saved(model: PreTrainedModel, folder: Path, **options: Any) -> dict[str, Tensor]:
    """The model's tensors as `save_pretrained` writes them: in the layout of the hub."""
    model.save_pretrained(folder, **options)
    return load_file(folder / "model.safetensors")


def layout_of(model: PreTrainedModel, state: dict[str, Tensor], **options: Any) -> list[OutTensor]:
    slots = [("only", i) for i in range(depth(model))]
    config = hybrid_config({"only": model}, slots, **options)
    return hybrid_layout(config.to_dict(), {"only": as_disk(state)})


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_files_of_every_family_become_the_donor_bit_for_bit(family: str, tmp_path: Path) -> None:
    """From the hub's layout (per-expert keys, old names) and from that in memory."""
    donor = tiny_model(family)
    ids = torch.randint(3, 60, (2, 7))
    logits = donor(ids).logits
    for state in (saved(donor, tmp_path), donor.state_dict()):
        hybrid = identity(donor, states={"only": state})
        assert torch.equal(hybrid(ids).logits, logits)
        assert check_names(donor.config, as_disk(state)) == ([], [], [])


def test_whole_tensors_are_one_piece_and_experts_alternate(tmp_path: Path) -> None:
    """Fused experts on disk lie one by one: gate and up of the first, of the second, ..."""
    donor = tiny_model("qwen3_moe")
    layout = {out.name: out for out in layout_of(donor, saved(donor, tmp_path))}
    norm = layout["model.norm.weight"]
    assert norm.pieces == (Piece("only", "model.norm.weight", 0, 32),)
    fused = next(out for name, out in layout.items() if name.endswith("experts.gate_up_proj"))
    names = [piece.tensor.split("experts.")[1] for piece in fused.pieces]
    assert names[:3] == ["0.gate_proj.weight", "0.up_proj.weight", "1.gate_proj.weight"]


@pytest.mark.parametrize("prefix", ["with", "without"])
def test_a_missing_or_extra_base_prefix_is_no_matter(prefix: str) -> None:
    """Old checkpoints were saved from the base model alone."""
    donor = tiny_model("llama", tie_word_embeddings=True)
    state = dict(donor.state_dict())
    state.pop("lm_head.weight")
    if prefix == "without":
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    layout = {out.name: out for out in layout_of(donor, state, tie=True)}
    assert "lm_head.weight" not in layout
    assert len(layout) == len(state)
    head = {out.name: out for out in layout_of(donor, state)}["lm_head.weight"]
    assert head.pieces[0].tensor.endswith("embed_tokens.weight")


def test_multimodal_files_give_their_text_model(tmp_path: Path) -> None:
    """Gemma 3's hub files hold a vision tower beside the language model."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

    text = tiny_model("gemma3_text")
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=28, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    config = Gemma3Config(text_config=text.config.to_dict(), vision_config=vision.to_dict())
    whole = Gemma3ForConditionalGeneration(config).eval()
    hybrid = identity(whole, states={"only": saved(whole, tmp_path)})
    ids = torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        assert torch.equal(hybrid(ids).logits, whole(ids).logits)


def test_several_donors_bridges_and_swaps_are_planned_as_the_model_has_them() -> None:
    """Exactly the hybrid's state dict, in its order; what no donor has is to be computed."""
    donors = {"a": tiny_model("llama"), "b": tiny_model("qwen3_next", hidden_size=48, seed=1)}
    spec = {"donor": "b", "layer": 0, "module": "linear_attn"}
    around = {
        "enter": {"kind": "linear", "in": 32, "out": 48, "bias": True},
        "leave": {"kind": "lowrank", "in": 48, "out": 32, "rank": 5},
    }
    slots = [
        ("a", 0),
        {"donor": "a", "layer": 1, "swap": {"self_attn": {**spec, "bridges": around}}},
        ("b", 1),
    ]
    bridges = {2: {"kind": "linear", "in": 32, "out": 48, "norm": True, "bias": True}}
    model = assemble(donors, slots, bridges=bridges)
    layout = hybrid_layout(
        model.config.to_dict(), {n: as_disk(d.state_dict()) for n, d in donors.items()}
    )
    assert [out.name for out in layout] == list(model.state_dict())
    computed = {out.name: out.shape for out in layout if not out.pieces}
    assert computed == {
        "model.layers.1.self_attn.enter.proj.weight": (48, 32),
        "model.layers.1.self_attn.enter.proj.bias": (48,),
        "model.layers.1.self_attn.leave.down.weight": (5, 48),
        "model.layers.1.self_attn.leave.up.weight": (32, 5),
        "model.bridges.2.norm.weight": (32,),
        "model.bridges.2.proj.weight": (48, 32),
        "model.bridges.2.proj.bias": (48,),
    }
    assert {out.dtype for out in layout} == {"F32"}


def test_what_a_donor_computes_with_outside_its_layers_comes_along() -> None:
    """GPT-2's position table belongs to no layer."""
    donor = tiny_model("gpt2")
    names = {out.name for out in layout_of(donor, dict(donor.state_dict()))}
    assert "model.donors.only.wpe.weight" in names


@pytest.mark.parametrize(
    ("family", "ending"),
    [
        ("deepseek_v3", "e_score_correction_bias"),  # a strict pattern of the class
        ("olmo_hybrid", "A_log"),  # fp32 by construction
        ("mamba2", "A_log"),
        ("mamba2", ".D"),
        ("gpt_oss", "norm.weight"),
    ],
)
def test_tensors_that_stay_fp32_are_marked(family: str, ending: str) -> None:
    """A cast must leave them alone, for hybrids and for native results."""
    donor = tiny_model(family)
    state = dict(donor.state_dict())
    layout = layout_of(donor, state)
    assert all(out.keep_fp32 for out in layout if out.name.endswith(ending))
    assert any(out.keep_fp32 for out in layout)
    assert not all(out.keep_fp32 for out in layout)
    assert any(name.endswith(ending) for name in keep_fp32_names(donor.config, as_disk(state)))


def test_a_pattern_of_one_donor_does_not_reach_anothers_tensors() -> None:
    """GPT-OSS keeps its norms in fp32, Llama does not."""
    donors = {"oss": tiny_model("gpt_oss"), "llama": tiny_model("llama", seed=1)}
    config = hybrid_config(donors, [("oss", 0), ("llama", 0)])
    disks = {n: as_disk(d.state_dict()) for n, d in donors.items()}
    kept = {out.name for out in hybrid_layout(config.to_dict(), disks) if out.keep_fp32}
    assert any(name.startswith("model.layers.0.") for name in kept)
    assert not any(name.startswith(("model.layers.1.", "model.norm")) for name in kept)


# ---- refusals ----------------------------------------------------------------------------------


def test_a_tensor_without_a_source_is_an_error() -> None:
    donor = tiny_model("llama")
    state = dict(donor.state_dict())
    del state["model.layers.2.mlp.up_proj.weight"]
    with pytest.raises(HybridizeError, match=r"no tensor for model\.layers\.2\.mlp\.up_proj"):
        layout_of(donor, state)


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_norm.weight", "lm_head.bias", "model.norm.bias"]
)
def test_a_tensor_that_a_used_module_does_not_know_is_an_error(name: str) -> None:
    """mergekit drops q_norm silently; here it names the tensor."""
    donor = tiny_model("llama")
    state = {**donor.state_dict(), name: torch.zeros(8)}
    with pytest.raises(HybridizeError, match=name):
        layout_of(donor, state)


@pytest.mark.parametrize(
    "name", ["model.layers.9.extra.weight", "mtp.fc.weight", "model.layers.0.rotary_emb.inv_freq"]
)
def test_tensors_of_unused_parts_are_left_out(name: str) -> None:
    """Heads for multi-token prediction, and buffers that old versions saved."""
    donor = tiny_model("llama")
    state = {**donor.state_dict(), name: torch.zeros(8)}
    assert name not in {p.tensor for out in layout_of(donor, state) for p in out.pieces}


def test_a_shape_that_the_config_does_not_ask_for_is_an_error() -> None:
    donor = tiny_model("llama")
    state = {**donor.state_dict(), "model.layers.0.mlp.up_proj.weight": torch.zeros(40, 32)}
    with pytest.raises(HybridizeError, match=r"shape \[40, 32\].*asks for \[48, 32\]"):
        layout_of(donor, state)


def test_a_conversion_that_computes_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Inkling 2's experts are interleaved on the hub; saved in the newer layout they are not."""
    donor = tiny_model("inkling2_text")
    with pytest.raises(HybridizeError, match="Interleave"):
        layout_of(donor, saved(donor, tmp_path / "old"))
    assert layout_of(donor, saved(donor, tmp_path / "new", save_original_format=False))


def test_check_names_tells_missing_unexpected_and_mismatched(tmp_path: Path) -> None:
    """What `from_pretrained` would report of a native result."""
    donor = tiny_model("qwen3")
    disk = as_disk(donor.state_dict())
    disk["model.layers.1.mlp.gate.weight"] = disk.pop("model.layers.1.mlp.gate_proj.weight")
    disk["model.norm.weight"] = ("F32", (31,))
    missing, unexpected, mismatched = check_names(donor.config, disk)
    assert missing == ["model.layers.1.mlp.gate_proj.weight"]
    assert unexpected == ["model.layers.1.mlp.gate.weight"]
    assert mismatched == [("model.norm.weight", (31,), (32,))]


def test_answers_are_plain_json() -> None:
    """They travel between two processes."""
    donor = tiny_model("llama")
    config = hybrid_config({"a": donor}, [("a", 0), ("a", 2)])
    disk = as_disk(donor.state_dict())
    minimal = {k: v for k, v in config.to_dict().items() if k not in ("layer_types", "vocab_size")}
    got = ask("layout", config=minimal, donors={"a": disk})
    assert got["config"]["layer_types"] == ["full_attention"] * 2
    assert got["config"]["donors"] == config.donors
    assert got["tensors"][0]["pieces"] == [
        {"donor": "a", "tensor": "model.embed_tokens.weight", "start": 0, "stop": 64 * 32}
    ]
    assert ask("native_fp32", config=donor.config.to_dict(), tensors=disk) == []


def ask(operation: str, **arguments: Any) -> Any:
    """What a build's second process answers."""
    return LocalWorker().submit(operation, **arguments).result()


# ---- symbolic tensors --------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_symbolic_tensors_move_as_torchs_own_do(dim: int) -> None:
    """An independent reference: the same functions on real numbers."""
    real = {"a": torch.randn(4, 6, 2), "b": torch.randn(4, 6, 2)}
    symbols = [Symbolic.whole("d", name, "F32", t.shape) for name, t in real.items()]

    def same(symbol: Any, tensor: Tensor) -> None:
        out = OutTensor("", symbol.dtype, symbol.shape, symbol.pieces, False)
        assert torch.equal(gather(out, {"d": real}), tensor)

    joined, joined_real = torch.cat(symbols, dim=dim), torch.cat(list(real.values()), dim=dim)
    same(joined, joined_real)
    same(torch.stack(symbols, dim=max(dim, 0)), torch.stack(list(real.values()), dim=max(dim, 0)))
    for ours, theirs in zip(torch.chunk(joined, 2, dim), joined_real.chunk(2, dim), strict=True):
        same(ours, theirs)
    sizes = [1, joined.shape[dim] - 1]
    pairs = zip(torch.split(joined, sizes, dim), joined_real.split(sizes, dim), strict=True)
    for ours, theirs in pairs:
        same(ours, theirs)
    for ours, theirs in zip(torch.unbind(joined, dim), joined_real.unbind(dim), strict=True):
        same(ours, theirs)
    whole = torch.cat(torch.unbind(symbols[0], 0), 0)
    assert whole.pieces == symbols[0].pieces  # neighbours become one again


def test_symbolic_tensors_refuse_arithmetic() -> None:
    symbol = Symbolic.whole("d", "a", "F32", (4, 4))
    for action in (lambda: torch.transpose(symbol, 0, 1), lambda: symbol.reshape(16)):
        with pytest.raises(NotBytewise):
            action()
    with pytest.raises(NotBytewise, match="different dtypes"):
        torch.cat([symbol, Symbolic.whole("d", "b", "BF16", (4, 4))])
