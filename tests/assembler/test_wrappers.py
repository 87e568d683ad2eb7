"""The language model inside a multimodal one is a donor, or the plan refuses it by name."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hybridize.architectures.families import types_with
from hybridize.architectures.refused import wrapper_refusal
from hybridize.errors import HybridizeError
from hybridize.model.checkpoint import open_checkpoint
from hybridize.model.donors import load_donor
from hybridize.torch_model.loading import load_folder
from tests.support.stacks import build_in, load, plan_of, save_donor
from tests.support.tiny import tiny_model
from tests.support.wrappers import all_wrappers, tiny_whole, whole_class

SOME = ("gemma3", "llava", "mistral3", "idefics3", "internvl", "qwen3_5", "blip-2", "qianfan_ocr")
ACCEPTED = [name for name in all_wrappers() if wrapper_refusal(name) is None]
TOWERS = re.compile("vision|visual|audio|projector|qformer")
# PaliGemma counts positions from 1: rotary angles differ by one step, their differences do not.
ROUNDED = ("paligemma",)


def wrappers(names: list[str]) -> list[Any]:
    return [n if n in SOME else pytest.param(n, marks=pytest.mark.slow) for n in names]


def text_logits(whole: Any, ids: Tensor) -> Tensor:
    """Of text alone; some classes take none without an image, but the model inside does."""
    try:
        logits: Tensor = whole(input_ids=ids).logits
    except TypeError:
        logits = whole.language_model(input_ids=ids).logits
    return logits


def recipe(whole: PreTrainedModel) -> dict[str, Any]:
    depth = whole.config.get_text_config(decoder=True).num_hidden_layers
    return {
        "donors": {"a": {"model": "a"}},
        "slots": [{"from": "a", "layers": f"0-{depth - 1}"}],
    }


def test_every_wrapper_is_measured_or_refused() -> None:
    assert set(SOME) <= set(ACCEPTED)
    assert set(types_with("wrapper_refused")) <= set(all_wrappers())
    for name in ACCEPTED:
        assert whole_class(name) is not None, name


@pytest.mark.parametrize("original", [True, False], ids=["hub names", "names in memory"])
@pytest.mark.parametrize("model_type", wrappers(ACCEPTED))
@torch.no_grad()
def test_its_language_model_is_itself_under_the_identity_recipe(
    model_type: str, original: bool, tmp_path: Path
) -> None:
    """Bit for bit the logits of the whole model on text; the rest is left out, and named."""
    whole = tiny_whole(model_type)
    whole.save_pretrained(tmp_path / "a", save_original_format=original)
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    built = build_in(tmp_path, recipe(whole))
    donor = built.plan.donors["a"]
    outside = {tensor.name for tensor in donor.anatomy.left_out}
    assert any("left out of donor 'a'" in note for note in built.plan.notes) is bool(outside)
    assert not [n for n in donor.checkpoint.tensors.keys() - outside if TOWERS.search(n)]
    assert built.plan.tied is (
        whole.get_input_embeddings().weight is output_embeddings(whole).weight
    )
    wanted = text_logits(whole, ids)
    tolerance = 1e-5 if model_type in ROUNDED else 0.0
    for model in (load(built.folder), load_folder(tmp_path / "a").model):
        torch.testing.assert_close(model(ids).logits, wanted, rtol=0, atol=tolerance)


def output_embeddings(whole: Any) -> Any:
    return whole.get_output_embeddings() or whole.language_model.get_output_embeddings()


@pytest.mark.parametrize("model_type", ["gemma3", "llava", "internvl", "voxtral", "llama4"])
def test_heads_of_wrappers_are_those_of_from_pretrained(model_type: str, tmp_path: Path) -> None:
    """With the key absent, true or false at either level, and the head there or not."""
    whole = tiny_whole(model_type)
    whole.config.tie_word_embeddings = whole.config.text_config.tie_word_embeddings = False
    whole.save_pretrained(tmp_path, save_original_format=False)
    state, file = load_file(tmp_path / "model.safetensors"), tmp_path / "config.json"
    anatomy = load_donor(tmp_path, name="a", source="a", place="a").anatomy
    embedding = state[anatomy.embedding.name]
    head = next((t.name for t in anatomy.head), "lm_head.weight")
    config = json.loads(file.read_text())
    key = "tie_word_embeddings"
    for own, nested, there in product((None, True, False), (None, True, False), (True, False)):
        inner = {k: v for k, v in config["text_config"].items() if k != key}
        outer = {k: v for k, v in config.items() if k != key}
        outer |= {} if own is None else {key: own}
        inner |= {} if nested is None else {key: nested}
        file.write_text(json.dumps(outer | {"text_config": inner}))
        tensors = {n: t for n, t in state.items() if n != head}
        tensors |= {head: embedding + 1} if there else {}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        theirs, info = whole_class(model_type).from_pretrained(tmp_path, output_loading_info=True)
        donor, case = load_donor(tmp_path, name="a", source="a", place="a"), (own, nested, there)
        tied = output_embeddings(theirs).weight is theirs.get_input_embeddings().weight
        assert donor.tied is tied, case
        assert donor.has_head is not any(n.endswith("lm_head.weight") for n in info["missing_keys"])


@pytest.mark.parametrize("model_type", sorted({*types_with("wrapper_refused"), "jev", "vibevoice"}))
def test_other_wrappers_are_refused_in_the_plan(model_type: str, tmp_path: Path) -> None:
    reason = wrapper_refusal(model_type)
    save_donor(tmp_path / "a", "llama")
    file = tmp_path / "a/config.json"
    whole = {"model_type": model_type, "text_config": json.loads(file.read_text())}
    file.write_text(json.dumps(whole))
    with pytest.raises(HybridizeError) as error:
        plan_of(
            tmp_path,
            {"donors": {"a": {"model": "a"}}, "slots": [{"from": "a", "layer": 0}]},
        )
    assert f"donor 'a' is of type '{model_type}': {reason}" in str(error.value)


def test_what_a_nested_config_leaves_out_is_its_classes(tmp_path: Path) -> None:
    """LLaVA's first files do not say how deep their Llama is, nor which type it has."""
    model = tiny_model("llama", num_hidden_layers=32)
    model.save_pretrained(tmp_path / "a")
    file = tmp_path / "a/config.json"
    text = json.loads(file.read_text())
    del text["num_hidden_layers"], text["model_type"]
    file.write_text(json.dumps({"model_type": "llava", "text_config": text}))
    donor = load_donor(tmp_path / "a", name="a", source="a", place="a")
    assert (donor.depth, donor.model_type) == (32, "llama")


def test_a_stack_of_a_wrapper_and_a_plain_donor(tmp_path: Path) -> None:
    """Its config in the result is the language model's alone: no tower stands in it."""
    tiny_whole("llava").save_pretrained(tmp_path / "a")
    save_donor(tmp_path / "b", "qwen3", seed=1)
    built = build_in(
        tmp_path,
        {
            "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
            "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
            "bridges": {"where": "none"},
        },
    )
    assert (
        "vision_config" not in json.loads((built.folder / "config.json").read_text())["donors"]["a"]
    )
    assert not [n for n in open_checkpoint(built.folder).tensors if "vision" in n]
    assert load(built.folder)(torch.arange(3, 20)[None]).logits.isfinite().all()
