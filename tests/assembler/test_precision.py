"""16-bit donors compute in float32 where the device is slow in 16 bits; what is stored stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridize.files.hashes import content_hash
from hybridize.machine import precision
from hybridize.machine.precision import compute_dtype
from hybridize.model.checkpoint import open_checkpoint, same_bytes
from hybridize.model.donors import load_donor
from hybridize.model.states import State
from hybridize.torch_model.loading import Weights
from hybridize.torch_model.stream import Stream
from tests.support.readers import prose, save, tokenizer, write_text
from tests.support.stacks import build_in
from tests.support.tiny import tiny_model

PLAIN = frozenset({"avx2", "avx512f"})
OTHER = {"float32": "bfloat16", "bfloat16": "float32"}
IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without instructions for 16 bits."""
    monkeypatch.setattr(precision, "cpu_flags", lambda: PLAIN)


@pytest.mark.parametrize(
    ("flags", "stored", "found"),
    [
        (PLAIN, "bfloat16", "float32"),
        (PLAIN, "float16", "float32"),
        (PLAIN, "float32", "float32"),
        (PLAIN, "float64", "float64"),
        (PLAIN | {"avx512_bf16"}, "bfloat16", "bfloat16"),
        (PLAIN | {"avx512_bf16"}, "float16", "float32"),
        (PLAIN | {"amx_bf16", "amx_fp16"}, "float16", "float16"),
        (frozenset({"asimd", "bf16"}), "bfloat16", "bfloat16"),
    ],
)
def test_the_processors_instructions_decide(
    monkeypatch: pytest.MonkeyPatch, flags: frozenset[str], stored: str, found: str
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    assert compute_dtype(stored, "cpu") == found
    assert compute_dtype(stored, "cpu", asked="bfloat16") == "bfloat16"


@pytest.mark.parametrize(("generation", "found"), [(7, "float32"), (8, "bfloat16")])
def test_the_generation_of_a_gpu_decides(
    monkeypatch: pytest.MonkeyPatch, generation: int, found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (generation, 0))
    assert compute_dtype("bfloat16", "cuda") == found
    assert compute_dtype("float16", "cuda") == "float16"


@pytest.mark.usefixtures("slow")
def test_a_copy_that_would_fill_the_memory_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "free_memory", lambda: 1000)
    assert compute_dtype("bfloat16", "cpu", widened=500) == "float32"
    assert compute_dtype("bfloat16", "cpu", widened=501) == "bfloat16"
    assert compute_dtype("bfloat16", "cpu", widened=501, asked="float32") == "float32"


def save_16_bits(folder: Path, model_type: str) -> Path:
    tiny_model(model_type).bfloat16().save_pretrained(folder)
    return folder


def weights(folder: Path, compute: str) -> Weights:
    donor = load_donor(folder, name="only", source="only", place="only")
    return Weights({"only": donor}, compute=compute)


@torch.no_grad()
def logits(folder: Path, dtype: str) -> torch.Tensor:
    """Those of transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    found: torch.Tensor = model.eval()(IDS, use_cache=False).logits.float()
    return found


@torch.no_grad()
def outcome(stream: Stream) -> torch.Tensor:
    return stream.logits(stream.norm(stream.run(stream.first, 0, stream.depth)))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mamba2", "qwen3_moe"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_logits_are_those_of_transformers_in_that_dtype(
    tmp_path: Path, model_type: str, dtype: str
) -> None:
    save_16_bits(tmp_path, model_type)
    before = content_hash(tmp_path / "model.safetensors")
    parts = weights(tmp_path, dtype).parts("only", streamed=False)
    assert parts.compute_dtype == dtype
    found = outcome(Stream(parts.model, IDS, None))
    same, other = (logits(tmp_path, d) for d in (dtype, OTHER[dtype]))
    # Kernels may round by where a tensor lies in memory; another dtype is much farther away.
    assert float((found - same).abs().max()) < 0.2 * float((other - same).abs().max())
    assert content_hash(tmp_path / "model.safetensors") == before


@pytest.mark.usefixtures("slow")
@torch.no_grad()
def test_auto_widens_on_a_slow_processor_once_for_all_models(tmp_path: Path) -> None:
    save_16_bits(tmp_path, "llama")
    found = weights(tmp_path, "auto")
    alone, again = found.alone("only"), found.parts("only", streamed=False).model
    assert {p.dtype for p in alone.parameters()} == {torch.float32}
    pairs = zip(alone.parameters(), again.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)


@pytest.mark.usefixtures("slow")
@torch.no_grad()
def test_streamed_layers_are_widened_while_they_are_in_use(tmp_path: Path) -> None:
    save_16_bits(tmp_path, "llama")
    parts = weights(tmp_path, "auto").parts("only", streamed=True)
    whole = Stream(weights(tmp_path, "auto").alone("only"), IDS, None)
    weight = parts.model.model.layers[0].self_attn.q_proj.weight
    assert weight.untyped_storage().nbytes() == 4  # a stand-in
    with parts.embedding():
        stream = Stream(parts.model, IDS, None)
    hidden = stream.first
    for index in range(stream.depth):
        with parts.slot(index):
            hidden = stream.run_slot(index, hidden)
    assert torch.equal(hidden, whole.read(State(whole.depth))[0])
    assert weight.untyped_storage().nbytes() == 4


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_a_build_notes_the_dtype_and_copies_the_same_bytes(tmp_path: Path, asked: str) -> None:
    """Whoever reads a manifest knows what its losses were computed in."""
    save(tiny_model("llama", vocab_size=288).bfloat16(), tmp_path / "a", tokenizer([prose()]))
    recipe = {
        "donors": {"a": {"model": "a"}},
        "slots": [{"from": "a", "layers": "0-2"}],
        "calibration": {"data": [write_text(tmp_path)], "tokens": 1000, "length": 32},
    }
    built = build_in(tmp_path, recipe, compute_dtype=asked)
    noted = json.loads((built.folder / "hybridize.json").read_text())
    computed = "float32" if asked == "auto" else asked
    assert noted["fit"]["compute_dtype"] == computed
    here, there = (open_checkpoint(f).tensors for f in (built.folder, tmp_path / "a"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert here[name].dtype == "BF16"
    assert same_bytes(here[name], there[name], whole=True)
