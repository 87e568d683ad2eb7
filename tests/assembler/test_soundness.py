"""What would come out wrong, or fail after the copy, is refused by plan and told by inspect."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybridize.architectures.refused import refusal
from hybridize.errors import HybridizeError
from hybridize.model.checkpoint import open_checkpoint
from hybridize.model.depth_map import depth_map
from hybridize.model.donors import load_donor, open_model
from hybridize.model.soundness import contradictions, unsound
from tests.support.stacks import build_in, load, plan_of, save_donor
from tests.support.tiny import all_causal_types, tiny_model

ONE: dict[str, Any] = {
    "donors": {"a": {"model": "a"}},
    "slots": [{"from": "a", "layers": "0-3"}],
}
ACCEPTED = [name for name in all_causal_types() if refusal(name) is None]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"

State = dict[str, Tensor]


@pytest.fixture
def donor(tmp_path: Path) -> Path:
    return save_donor(tmp_path / "a", "llama")


def alter(donor: Path, change: Callable[[State], State]) -> None:
    """Write other tensors into a donor's file."""
    file = donor / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def configure(donor: Path, **fields: Any) -> None:
    file = donor / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refused(donor: Path) -> str:
    """What plan says; inspect must say it too."""
    with pytest.raises(HybridizeError) as error:
        plan_of(donor.parent, ONE)
    (finding, *_) = error.value.findings
    assert finding.fix
    try:
        told = str(depth_map(open_model(str(donor)), "a").refused)
    except HybridizeError as broken:  # nothing stands where it should
        told = str(broken)
    assert finding.found.removeprefix("donor 'a' ") in told
    return finding.found


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("nested", [False, True])
def test_quantized_by_any_key_of_its_config(donor: Path, key: str, nested: bool) -> None:
    settings = {key: {"quant_method": "fp8"}}
    text = json.loads((donor / "config.json").read_text())
    configure(donor, **({"model_type": "llava", "text_config": text | settings}
                        if nested else settings))  # fmt: skip
    where = "text_config of config.json" if nested else "config.json"
    assert f"is quantized ({key} in {where})" in refused(donor)


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
def test_quantized_by_a_file_beside_its_config(donor: Path, name: str) -> None:
    (donor / name).write_text('{"bits": 4}')
    assert f"is quantized ({name})" in refused(donor)


@pytest.mark.parametrize(
    "ending",
    [
        "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_packed", "weight_zero_point",
        "qweight", "qzeros", "g_idx", "SCB", "weight.absmax", "weight.nested_absmax",
        "weight.quant_map", "weight.quant_state.bitsandbytes__nf4",
    ],
)  # fmt: skip
def test_quantized_by_what_lies_beside_a_weight(donor: Path, ending: str) -> None:
    """Configs get lost; scales do not."""
    name = f"model.layers.1.mlp.up_proj.{ending}"
    alter(donor, lambda state: state | {name: torch.zeros(4)})
    assert f"is quantized (tensor {name})" in refused(donor)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_quantized_by_the_dtype_of_its_weights(donor: Path, dtype: torch.dtype) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    alter(donor, lambda state: state | {name: state[name].to(dtype)})
    assert f"is quantized (tensor {name} is stored as " in refused(donor)


def test_an_empty_key_is_no_quantization(donor: Path) -> None:
    """transformers itself writes null."""
    configure(donor, quantization_config=None)
    assert plan_of(donor.parent, ONE).donors["a"].depth == 4


def test_causal_masks_of_old_files_are_no_quantization(tmp_path: Path) -> None:
    """GPT-2's files hold its masks in 8 bits."""
    donor = save_donor(tmp_path / "a", "gpt2")
    mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
    alter(donor, lambda state: state | {"transformer.h.0.attn.bias": mask})
    assert not unsound(open_checkpoint(donor))


@pytest.mark.parametrize(
    ("prefix", "place"),
    [
        ("_orig_mod.", "{}model.layers"),
        ("_orig_mod.", "model.{}layers"),
        ("module.", "{}model.layers"),
        ("_fsdp_wrapped_module.", "{}model.layers"),
        ("_fsdp_wrapped_module.", "model.layers.0.{}self_attn"),
        ("_checkpoint_wrapped_module.", "model.layers.0.{}self_attn"),
    ],
)
def test_names_of_a_wrapper_are_refused_with_the_way_to_rename(
    donor: Path, prefix: str, place: str
) -> None:
    """transformers passes over such names, and starts at random."""
    before = load_file(donor / "model.safetensors")
    old, new = place.format(""), place.format(prefix)
    alter(donor, lambda state: {n.replace(old, new, 1): t for n, t in state.items()})
    assert f"put '{prefix}' into" in refused(donor)
    with pytest.raises(HybridizeError) as error:
        plan_of(donor.parent, ONE)
    fix = str(error.value.findings[0].fix).partition("rename: ")[2].partition(", and the")[0]
    fix = fix.replace("python", f"{Path('.venv/bin/python').absolute()}", 1)
    subprocess.run(fix.replace("FOLDER", str(donor)), shell=True, check=True)
    after = load_file(donor / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.base_layer.weight",
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
    ],
)
def test_an_adapter_within_the_weights_is_refused(donor: Path, name: str) -> None:
    alter(donor, lambda state: state | {name: torch.zeros(2, 2)})
    assert f"was saved with an adapter in it ({name})" in refused(donor)


@pytest.mark.parametrize("rows", [63, 65])
def test_vocab_size_against_the_rows(donor: Path, rows: int) -> None:
    configure(donor, vocab_size=rows)
    assert f"has 64 rows in model.embed_tokens.weight, and its config says vocab_size: {rows}" in (
        refused(donor)
    )


def test_vocab_size_of_the_class_against_the_rows(donor: Path) -> None:
    """Left out, it is the class's: transformers refuses the tensor by its shape."""
    config = json.loads((donor / "config.json").read_text())
    del config["vocab_size"]
    (donor / "config.json").write_text(json.dumps(config))
    assert "vocab_size: 32000" in refused(donor)


@pytest.mark.parametrize("entries", [3, 5])
def test_layer_types_that_do_not_fit_the_depth(tmp_path: Path, entries: int) -> None:
    donor = save_donor(tmp_path / "a", "qwen3")
    configure(donor, layer_types=["full_attention"] * entries)
    assert f"has 4 layers, and {entries} entries of layer_types in its config" in refused(donor)


def add_tokens(donor: Path, numbers: list[int]) -> None:
    entries = [{"id": n, "content": f"<{n}>", "special": True} for n in numbers]
    content = {"version": "1.0", "added_tokens": entries, "model": {"type": "BPE", "vocab": {}}}
    (donor / "tokenizer.json").write_text(json.dumps(content))


def test_a_tokenizer_of_another_model_is_refused(donor: Path) -> None:
    add_tokens(donor, [0, 100, 101])
    assert "has a tokenizer that gives numbers up to 101, and 64 rows in its embedding" in (
        refused(donor)
    )


def test_a_token_without_a_row_is_named(donor: Path) -> None:
    """Gemma 3's tokenizer has a token for images that its small models have no row for."""
    add_tokens(donor, [0, 1, 64])
    notes = plan_of(donor.parent, ONE).notes
    assert "donor 'a' cannot read its token 64 (<64>): its embedding has 64 rows" in notes


@pytest.mark.parametrize("content", ["", "[]", '{"added_tokens": 3}', '{"added_tokens": [{}]}'])
def test_a_broken_tokenizer_is_left_to_whoever_reads_it(donor: Path, content: str) -> None:
    (donor / "tokenizer.json").write_text(content)
    checkpoint = open_checkpoint(donor)
    assert not contradictions(checkpoint, depth_map(checkpoint, "a").anatomy)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"]
)
def test_a_git_lfs_pointer_in_place_of_any_file(donor: Path, name: str) -> None:
    (donor / name).write_text(LFS)
    with pytest.raises(HybridizeError, match="Git LFS pointer") as error:
        plan_of(donor.parent, ONE)
    assert "git lfs pull" in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00001-of-00001"])
def test_a_git_lfs_pointer_in_place_of_a_shard_or_the_index(tmp_path: Path, name: str) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "a", max_shard_size="20KB")
    files = sorted((tmp_path / "a").glob("model*"))
    file = next((f for f in files if f.name == name), files[0])
    file.write_text(LFS)
    with pytest.raises(HybridizeError, match="Git LFS pointer") as error:
        plan_of(tmp_path, ONE)
    assert file.name in str(error.value)


def adapter(base: Path, folder: Path) -> None:
    """Saved by peft, for a base."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(load(base), config)
    model.save_pretrained(folder)


def run_fix(error: HybridizeError) -> None:
    command = str(error.findings[0].fix).removeprefix("merge it: ").partition(", and copy")[0]
    python = str(Path(".venv/bin/python").absolute())
    subprocess.run(command.replace("python -c", f"{python} -c"), shell=True, check=True)


def test_an_adapter_alone_is_told_from_a_model(donor: Path, tmp_path: Path) -> None:
    adapter(donor, tmp_path / "b")
    for look in (
        lambda: open_model(str(tmp_path / "b")),
        lambda: load_donor(tmp_path / "b", name="b", source="b", place="here"),
    ):
        with pytest.raises(HybridizeError, match="this is an adapter alone") as error:
            look()
    run_fix(error.value)
    assert plan_of(tmp_path, ONE | {"donors": {"a": {"model": "b-merged"}}}).donors["a"].depth == 4


def test_an_adapter_beside_a_model_is_refused_with_the_way_to_merge_it(
    donor: Path, tmp_path: Path
) -> None:
    """transformers applies it when peft is there; the files alone are another model."""
    adapter(donor, tmp_path / "b")
    for file in (tmp_path / "b").glob("adapter_*"):
        file.rename(donor / file.name)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        wanted = load(donor)(ids).logits
    assert "has an adapter beside its weights" in refused(donor)
    with pytest.raises(HybridizeError) as error:
        plan_of(tmp_path, ONE)
    run_fix(error.value)
    built = build_in(tmp_path, ONE | {"donors": {"a": {"model": "a-merged"}}})
    with torch.no_grad():
        torch.testing.assert_close(load(built.folder)(ids).logits, wanted)


@pytest.mark.parametrize("target", ["native", "hybrid"])
@pytest.mark.parametrize("name", ["v_head.weight", "v_head.summary.weight", "score.weight"])
def test_what_is_no_part_of_the_model_is_left_out_and_named(
    donor: Path, name: str, target: str
) -> None:
    """A value head of a trainer is nothing that a stack could use."""
    alter(donor, lambda state: state | {name: torch.zeros(1, 32)})
    built = build_in(donor.parent, ONE | {"target": target})
    told = f"left out of donor 'a', no part of its language model: {name}"
    assert told in built.plan.notes
    assert name in str(depth_map(open_model(str(donor)), "a").as_dict()["left_out"])
    assert name not in open_checkpoint(built.folder).tensors


def test_layers_beyond_the_depth_are_named(donor: Path) -> None:
    """A config of another size would cut the model without a word."""
    configure(donor, num_hidden_layers=3)
    plan = plan_of(donor.parent, ONE | {"slots": [{"from": "a", "layers": "0-2"}]})
    assert any("model.layers.3.* (9 tensors)" in note for note in plan.notes)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ACCEPTED)
def test_every_accepted_type_is_sound_as_it_is_saved(model_type: str, tmp_path: Path) -> None:
    save_donor(tmp_path / "a", model_type)
    checkpoint = open_checkpoint(tmp_path / "a")
    anatomy = depth_map(checkpoint, "a").anatomy
    assert not unsound(checkpoint)
    assert not contradictions(checkpoint, anatomy)
    assert not anatomy.left_out
