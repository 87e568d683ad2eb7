"""A hybrid is saved, loaded, split over devices and initialised as any model of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.initialization import no_init_weights

import hybridize.runtime as runtime
from hybridize import registration
from hybridize.architectures.refused import refusal
from hybridize.runtime import HybridForCausalLM, HybridModel
from tests.support.inmemory import assemble, identity
from tests.support.runtime_stacks import (
    STACKS,
    llama_and_olmo_hybrid,
    llama_and_qwen3,
    mixer_swapped,
    mlp_swapped_with_bridges,
)
from tests.support.tiny import FAMILIES, all_causal_types, tiny_model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 60, (2, 8))


@pytest.mark.parametrize("make", STACKS)
@torch.no_grad()
def test_saved_and_loaded_hybrids_are_equal(make: Any, ids: Tensor, tmp_path: Path) -> None:
    """Every tensor, and nothing missing or unexpected."""
    model = make()
    model.save_pretrained(tmp_path)
    loaded, info = HybridForCausalLM.from_pretrained(
        tmp_path, dtype=model.dtype, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert json.loads(loaded.config.to_json_string()) == json.loads(model.config.to_json_string())


# Those whose classes keep something in fp32, or fill buffers in a way of their own.
PECULIAR = {"deepseek_v3", "falcon_h1", "gpt2", "mamba2", "olmo_hybrid", "recurrent_gemma"}
EACH = [f if f in PECULIAR else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]


@pytest.mark.parametrize("family", EACH)
def test_a_bf16_load_gives_each_tensor_the_dtype_it_has_in_its_donor(
    family: str, ids: Tensor, tmp_path: Path
) -> None:
    """Routers, decay rates and residuals that a class keeps in fp32 stay so."""
    donor = tiny_model(family)
    identity(donor).save_pretrained(tmp_path / "hybrid")
    donor.save_pretrained(tmp_path / "donor")
    ours = HybridForCausalLM.from_pretrained(tmp_path / "hybrid", dtype=torch.bfloat16)
    theirs = type(donor).from_pretrained(tmp_path / "donor", dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    fp32 = [sum(p.dtype == torch.float32 for p in m.state_dict().values()) for m in (ours, theirs)]
    assert fp32[0] == fp32[1]


@pytest.mark.parametrize("family", EACH)
@torch.no_grad()
def test_missing_tensors_are_initialised_by_their_donors_rules(
    family: str, ids: Tensor, tmp_path: Path
) -> None:
    """Via the meta device, and directly: finite, and no buffer left as memory came."""
    donor = tiny_model(family)
    model = identity(donor)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    dropped = [n for n in tensors if n.startswith("model.layers.1.")]
    save_file({n: t for n, t in tensors.items() if n not in dropped}, file, {"format": "pt"})
    loaded, info = HybridForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(dropped)
    assert torch.isfinite(loaded(ids).logits).all()

    fresh = HybridForCausalLM(model.config)
    assert torch.isfinite(fresh(ids).logits).all()
    for name, ours in model.named_buffers():
        assert torch.equal(fresh.get_buffer(name), ours) or name in model.state_dict(), name


def test_a_donors_name_that_torch_has_taken_is_refused() -> None:
    """`model.donors.train` could not be told from the method."""
    donor = tiny_model("llama")
    with pytest.raises(ValueError, match="no donor can be called 'train'"):
        assemble({"train": donor}, [("train", 0)])


def test_bridges_start_as_lengths_kept() -> None:
    """Orthogonal, or the identity where the widths agree."""
    config = llama_and_olmo_hybrid().config
    proj = HybridForCausalLM(config).model.bridges["1"].proj.weight
    torch.testing.assert_close(proj.T @ proj, torch.eye(64), atol=1e-5, rtol=0)


def test_the_auto_classes_know_hybrids(ids: Tensor, tmp_path: Path) -> None:
    """Without remote code, where hybridize is imported."""
    model = llama_and_qwen3()
    model.save_pretrained(tmp_path)
    runtime.register()  # twice is once
    assert type(AutoConfig.from_pretrained(tmp_path)) is runtime.HybridConfig
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is HybridForCausalLM
    stack = AutoModel.from_pretrained(tmp_path)
    stack.config.save_pretrained(tmp_path / "again")
    remote = json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"]
    assert set(remote) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert type(stack) is HybridModel
    with torch.no_grad():
        hidden = stack(ids).last_hidden_state
        assert torch.equal(model.lm_head(hidden), model(ids).logits)


IN_A_NEW_PROCESS = """
import sys, torch
{imports}
from transformers import AutoModelForCausalLM
ids, logits = torch.load("{folder}/expected.pt")
model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code={trust})
assert torch.equal(model(ids).logits, logits)
print(type(model).__module__, "hybridize" in sys.modules)
"""
ANNOUNCED = """
import hybridize.registration; hybridize.registration.install()
assert "transformers" not in sys.modules
from transformers import AutoConfig, CONFIG_MAPPING
assert "hybridize" in CONFIG_MAPPING and "hybridize.runtime" not in sys.modules
"""


@pytest.mark.parametrize(
    ("imports", "trust", "expected"),
    [
        ("", True, "transformers_modules"),
        (ANNOUNCED, None, "hybridize.runtime.modeling_hybridize True"),
    ],
)
def test_a_new_process_loads_a_hybrid(
    imports: str, trust: bool | None, expected: str, ids: Tensor, tmp_path: Path
) -> None:
    """With remote code and without hybridize; or without remote code where hybridize is imported.

    The announcement costs nothing: the runtime is imported with the first hybrid.
    """
    model = mixer_swapped()
    model.save_pretrained(tmp_path)
    torch.save((ids, model(ids).logits.detach()), tmp_path / "expected.pt")
    code = IN_A_NEW_PROCESS.format(imports=imports, folder=tmp_path, trust=trust)
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected), done.stdout
    if trust:
        assert done.stdout.strip().endswith("False")


def test_hybrids_are_announced_to_a_transformers_that_was_imported_before(tmp_path: Path) -> None:
    """Whichever is imported first."""
    configs = sys.modules["transformers.models.auto.configuration_auto"]
    llama_and_qwen3().config.save_pretrained(tmp_path)
    del configs.CONFIG_MAPPING._extra_content["hybridize"]
    try:
        registration.install()
        announced = configs.CONFIG_MAPPING["hybridize"]
        assert announced is not runtime.HybridConfig
        assert isinstance(AutoConfig.from_pretrained(tmp_path), runtime.HybridConfig)
        assert announced().model_type == "hybridize"
    finally:
        runtime.register()
    assert configs.CONFIG_MAPPING["hybridize"] is runtime.HybridConfig


# ---- models that are made empty ----------------------------------------------------------------


def made_empty(config: Any, way: str) -> HybridForCausalLM:
    """A hybrid as trainers and loaders make it that fill it by `load_state_dict` afterwards."""
    from accelerate import init_empty_weights

    ways: dict[str, Any] = {
        "no_init_weights": no_init_weights,
        "init_empty_weights": init_empty_weights,
        "meta": lambda: torch.device("meta"),
    }
    with ways[way]():
        return HybridForCausalLM(config).eval()


WAYS = [
    ("no_init_weights", False),
    ("no_init_weights", True),
    ("init_empty_weights", True),
    ("meta", True),
]
ACCEPTED = [name for name in all_causal_types() if refusal(name) is None]
# Each has a kind of buffer of its own.
BUFFERS = {"codegen", "ctrl", "falcon_h1", "falcon_mamba", "gemma3_text", "gpt_neo", "llama"}
BUFFERS |= {"recurrent_gemma", "xglm"}


@pytest.mark.parametrize(
    "family", [f if f in BUFFERS else pytest.param(f, marks=pytest.mark.slow) for f in ACCEPTED]
)
@torch.no_grad()
def test_a_model_made_empty_and_filled_has_its_donors_buffers(family: str, ids: Tensor) -> None:
    """Rotary tables, scales and masks are in no checkpoint, so that no load brings them."""
    donor = tiny_model(family)
    model = identity(donor)
    logits = donor(ids, use_cache=False).logits
    buffers = dict(model.named_non_persistent_buffers())
    for way, assign in WAYS:
        filled = made_empty(model.config, way)
        filled.load_state_dict(model.state_dict(), strict=True, assign=assign)
        for name, buffer in filled.named_non_persistent_buffers():
            assert torch.equal(buffer, buffers[name]), (way, name)
        assert torch.equal(filled(ids, use_cache=False).logits, logits), way


ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.2, 2.4, 2.6],
        "original_max_position_embeddings": 16,
    },
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: str(rope["rope_type"]))
@torch.no_grad()
def test_scaled_rotary_tables_are_there_too(rope: dict[str, Any]) -> None:
    """Long-context donors: beyond the original length as well, where tables change at run time."""
    donor = tiny_model("llama", rope_parameters={**rope, "rope_theta": 10000.0})
    model, long = identity(donor), torch.randint(3, 60, (2, 40))
    logits = donor(long).logits
    for way, assign in WAYS:
        filled = made_empty(model.config, way)
        filled.load_state_dict(model.state_dict(), assign=assign)
        assert torch.equal(filled(long).logits, logits), way


@torch.no_grad()
def test_filling_the_buffers_leaves_parameters_alone(ids: Tensor) -> None:
    """Donors' rules initialise modules as wholes."""
    model = llama_and_olmo_hybrid()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.model.fill_buffers()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(hasattr(p, "_is_hf_initialized") for p in model.parameters())


# ---- devices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama_and_olmo_hybrid, mlp_swapped_with_bridges])
@torch.no_grad()
def test_layers_on_disk_give_the_same_logits(make: Any, ids: Tensor, tmp_path: Path) -> None:
    """accelerate loads each layer when its turn comes; masks and rotary tables follow."""
    model = make()
    model.save_pretrained(tmp_path / "model")
    names = [n for n, _ in model.named_children() if n != "model"]
    split: dict[str, str] = dict.fromkeys(names, "cpu")
    split |= {f"model.{n}": "cpu" for n, _ in model.model.named_children() if n != "layers"}
    split |= {
        f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(len(model.model.layers))
    }
    loaded = HybridForCausalLM.from_pretrained(
        tmp_path / "model", device_map=split, offload_folder=str(tmp_path / "off")
    )
    assert next(loaded.model.layers[1].parameters()).is_meta
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))


@torch.no_grad()
def test_an_automatic_split_keeps_layers_whole(ids: Tensor, tmp_path: Path) -> None:
    """`device_map="auto"` under a memory limit: what does not fit goes to the disk."""
    model = llama_and_olmo_hybrid()
    model.save_pretrained(tmp_path / "model")
    nbytes = sum(p.numel() * 4 for p in model.parameters())
    loaded = HybridForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": int(nbytes * 0.6)},
        offload_folder=str(tmp_path / "off"),
    )
    places = loaded.hf_device_map
    assert "disk" in places.values()
    assert not any(name.count(".") > 2 for name in places if name.startswith("model.layers"))
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    whole = HybridForCausalLM.from_pretrained(tmp_path / "model", device_map="cpu")
    assert torch.equal(whole(ids).logits, model(ids).logits)


def test_building_on_meta_takes_no_memory() -> None:
    """The load check of a build instantiates on meta, by either way."""
    from accelerate import init_empty_weights

    config = llama_and_olmo_hybrid().config
    with torch.device("meta"):
        by_device = HybridForCausalLM(config)
    with init_empty_weights():
        by_accelerate = HybridForCausalLM(config)
    for model in (by_device, by_accelerate):
        assert all(p.is_meta for p in model.parameters())


# ---- donors that cannot be reproduced ----------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("openai-gpt", "takes no cache"),
        ("cpmant", "takes no inputs_embeds"),
        ("modernbert-decoder", "more than one matrix"),
        ("longcat_flash", "list of"),
        ("zamba2", "share weights"),
        ("deepseek_v4", "cache of"),
    ],
)
def test_donors_that_cannot_be_reproduced_are_refused_by_name(family: str, reason: str) -> None:
    """With the model type and the reason, before a step is run."""
    donor = tiny_model(family)
    with pytest.raises(NotImplementedError, match=rf"{family}.*{reason}"):
        identity(donor)


def test_layers_that_hand_each_other_more_than_a_state_are_refused(ids: Tensor) -> None:
    """Hy V4 passes the choice of one layer's indexer on to the next: a recorder has none."""
    hybrid = identity(tiny_model("hy_v4"))
    with pytest.raises(NotImplementedError, match="more than a state: prev_topk_indices"):
        hybrid(ids)


@torch.no_grad()
def test_a_donor_that_needs_the_embedded_tokens_shows_it_elsewhere_than_below(ids: Tensor) -> None:
    """Nothing is silently wrong: as embedding donor Gemma 4 works, above it says why not."""
    donors = {"llama": tiny_model("llama"), "gemma": tiny_model("gemma4_text", seed=1)}
    below = assemble(donors, [("gemma", 0), ("gemma", 1), ("llama", 1)])
    assert torch.isfinite(below(ids).logits).all()
    above = assemble(donors, [("llama", 0), ("gemma", 1), ("llama", 1)])
    with pytest.raises(RuntimeError, match="inputs_embeds"):
        above(ids)
