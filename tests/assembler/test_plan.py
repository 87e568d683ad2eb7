"""What a user can get wrong is found in the plan, at its place, before a weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridize.assembler.plan.planning import make_plan
from hybridize.assembler.plan.report import num_bytes, num_parameters, plan_as_dict
from hybridize.errors import HybridizeError
from hybridize.model.states import State
from hybridize.recipe.file import load_recipe
from tests.support.stacks import UNFITTED, plan_of, save_donor


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with donors of several kinds."""
    folder = tmp_path_factory.mktemp("donors")
    save_donor(folder / "llama", "llama")
    save_donor(folder / "twin", "llama", seed=1)
    save_donor(folder / "wide", "llama", hidden_size=48)
    save_donor(folder / "big", "llama", vocab_size=80)
    save_donor(folder / "qwen", "qwen3")
    save_donor(folder / "tied", "llama", tie_word_embeddings=True)
    return folder


def complaints(donors: Path, text: str) -> str:
    file = donors / "x.yaml"
    file.write_text(text)
    with pytest.raises(HybridizeError) as caught:
        make_plan(load_recipe(file))
    return str(caught.value).replace(f"{donors}/", "")


def test_layers_that_do_not_exist_are_named_with_the_range_that_does(donors: Path) -> None:
    """mergekit: 30 to 70 lines of traceback, while it executes."""
    text = """\
donors: {a: {model: llama}, b: {model: qwen}}
slots:
  - {from: a, layers: 0-9}
  - {from: b, layers: 0-1}
  - {from: b, layer: 4}
  - {from: a, layer: 0, mlp: {from: b, layer: 7}}
"""
    assert (
        complaints(donors, text)
        == """\
x.yaml:3:23: slots[0].layers: donor 'a' has no layer 4, 5, 6, 7, 8, ...: it has 4
x.yaml:5:22: slots[2].layer: donor 'b' has no layer 4: it has 4
x.yaml:6:30: slots[3].mlp: donor 'b' has no layer 7: it has 4
  fix: its layers are 0-3, counted from 0, inclusive at both ends"""
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "donors: {a: {model: llama}, w: {model: wide}}\n"
            "slots: [{from: a, layer: 0}, {from: w, layers: 0-1}]\nbridges: {where: none}",
            "x.yaml:2:30: slots[1]: the width changes from 32 ('a') to 48 ('w') before slot 1, "
            "without a bridge\n  fix: add 1 to bridges.where, or write where: auto",
        ),
        (
            "donors: {a: {model: llama}, w: {model: wide}}\n"
            "slots: [{from: a, layer: 0}]\nhead: w\nbridges: {where: none}",
            "x.yaml:3:7: head: the width changes from 32 ('a') to 48 ('w') before the head",
        ),
        (
            "donors: {a: {model: llama}, w: {model: wide}}\n"
            "slots: [{from: a, layer: 0}, {from: w, layer: 0, bridge: identity}]",
            "x.yaml:2:58: slots[1].bridge: a bridge of kind 'identity' cannot lead from width 32",
        ),
        (
            "donors: {a: {model: llama}, b: {model: big}}\n"
            "slots: [{from: a, layer: 0}, {from: b, layer: 0}]",
            "x.yaml:2:8: slots: the vocabulary differs: 64 rows in the embeddings of 'a', 80 in "
            "the head of 'b'\n  fix: take embeddings and head from one donor: embeddings: b, or "
            "head: a",
        ),
        (
            "donors: {a: {model: llama}}\nslots: [{from: a, layer: 0}]\nbridges: {where: [1, 2]}",
            "x.yaml:3:18: bridges.where: there is no slot 1: the stack has 1",
        ),
        (
            "donors: {a: {model: llama}}\nslots: [{from: a, layer: 0}]\ntokenizer: a",
            "x.yaml:3:12: tokenizer: donor 'a' has no tokenizer files",
        ),
        (
            "donors: {a: {model: llama, revision: main}}\nslots: [{from: a, layer: 0}]",
            "x.yaml:1:13: donors.a: 'llama' is a folder here, and a folder has no revision",
        ),
        (
            "donors: {a: {model: ./lama}}\nslots: [{from: a, layer: 0}]",
            "x.yaml:1:13: donors.a: no such folder: lama",
        ),
        (
            "donors: {a: {model: llama}, q: {model: qwen}}\n"
            "slots: [{from: a, layer: 0}, {from: q, layer: 0}]\ntarget: native",
            "x.yaml:3:9: target: this stack is not a native model: ",
        ),
    ],
)
def test_mistakes_that_need_donors(donors: Path, text: str, found: str) -> None:
    assert found in complaints(donors, text)


def test_a_hub_id_that_is_not_here_says_what_was_looked_for(donors: Path) -> None:
    found = complaints(donors, "donors: {a: {model: org/none}}\nslots: [{from: a, layer: 0}]")
    assert "the hub's org/none@main is not on this machine" in found
    assert "models--org--none" in found
    assert "config.json and safetensors files" in found


def test_broken_donors_are_all_reported(donors: Path, tmp_path: Path) -> None:
    slots = "slots: [{from: a, layer: 0}, {from: b, layer: 0}]"
    found = complaints(donors, f"donors: {{a: {{model: n1}}, b: {{model: ./n2}}}}\n{slots}")
    assert "n1" in found
    assert "n2" in found


def recipe(**more: Any) -> dict[str, Any]:
    slots = [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "1-3"}]
    return {
        "donors": {"a": {"model": "llama"}, "b": {"model": "twin"}},
        "slots": slots,
        "bridges": UNFITTED,
        **more,
    }


def test_defaults_follow_first_and_last_slot(donors: Path) -> None:
    plan = plan_of(donors, recipe())
    assert (plan.embeddings, plan.head) == ("a", "b")
    assert plan.picks == [("a", 0), ("a", 1), ("b", 1), ("b", 2), ("b", 3)]
    assert plan.tokenizer is None
    assert "donor 'a' has no tokenizer files: the result will have none" in plan.notes


@pytest.mark.parametrize(
    ("where", "bridges"),
    [
        ("auto", ["2"]),  # the donors were made apart
        ("width-changes", []),
        ("none", []),
        ("changes", ["2"]),
        ([0, "head"], ["0", "head"]),
    ],
)
def test_bridges_stand_where_the_recipe_says(donors: Path, where: Any, bridges: list[str]) -> None:
    assert (
        list(plan_of(donors, recipe(bridges={"where": where, "init": "random"})).bridges) == bridges
    )


def test_widths_are_bridged_by_default(donors: Path) -> None:
    text = recipe(bridges={"init": "random"})
    text["donors"]["b"] = {"model": "wide"}
    plan = plan_of(donors, text)
    bridge = plan.bridges["2"]
    assert (bridge.kind, bridge.width_in, bridge.width_out) == ("linear", 32, 48)
    assert (bridge.reads, bridge.writes) == (("a", State(2)), ("b", State(1)))
    assert plan.target == "hybrid"
    assert plan.reason == "a bridge stands before slot 2"


@pytest.mark.parametrize(
    ("embeddings", "head", "tied"),
    [("a", "a", False), ("t", "t", True), ("a", "t", False), ("t", "a", False)],
)
def test_tying_follows_what_the_donors_hold(
    donors: Path, embeddings: str, head: str, tied: bool
) -> None:
    """mergekit: an untied base with a tied donor has no head, and nobody says so."""
    plan = plan_of(
        donors,
        {
            "donors": {"a": {"model": "llama"}, "t": {"model": "tied"}},
            "slots": [{"from": "a", "layer": 0}],
            "embeddings": embeddings,
            "head": head,
        },
    )
    assert plan.tied is tied


def test_a_head_that_differs_from_its_tied_embedding_is_kept(tmp_path: Path) -> None:
    """The config says tied, the bytes say otherwise: the bytes are the model."""
    save_donor(tmp_path / "llama", "llama")
    config = tmp_path / "llama/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    text = {"donors": {"a": {"model": "llama"}}, "slots": [{"from": "a", "layer": 0}]}
    assert plan_of(tmp_path, text).tied is False


def test_a_donor_without_a_head_of_its_own_is_refused_as_head(tmp_path: Path) -> None:
    """A base model saved alone would get a random head at load."""
    from tests.support.tiny import tiny_model

    tiny_model("llama").model.save_pretrained(tmp_path / "base")
    text = {"donors": {"a": {"model": "base"}}, "slots": [{"from": "a", "layer": 0}]}
    with pytest.raises(HybridizeError, match="has no output head"):
        plan_of(tmp_path, text)


def test_donors_of_differing_dtype_lose_nothing(tmp_path: Path) -> None:
    import torch

    from tests.support.tiny import tiny_model

    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    save_donor(tmp_path / "full", "llama")
    text = {
        "donors": {"a": {"model": "half"}, "b": {"model": "full"}},
        "slots": [{"from": "a", "layer": 0}, {"from": "b", "layer": 0}],
    }
    plan = plan_of(tmp_path, text)
    assert plan.dtype == "F32"
    assert plan.dtype_reason.startswith("float32, the least that loses nothing of a bfloat16, b")
    assert plan_of(tmp_path, text | {"dtype": "bfloat16"}).dtype == "BF16"


def test_sizes_are_those_of_the_parts(donors: Path) -> None:
    plan = plan_of(donors, recipe())
    layer = plan.donors["a"].anatomy.layers[0]
    outer = 2 * 64 * 32 + 32
    assert num_parameters(plan) == 5 * layer.num_parameters + outer
    assert num_bytes(plan) == 4 * num_parameters(plan)


def test_the_json_of_a_plan_has_every_slot(donors: Path) -> None:
    document = json.loads(json.dumps(plan_as_dict(plan_of(donors, recipe()))))
    assert [slot["layer"] for slot in document["slots"]] == [0, 1, 1, 2, 3]
    assert document["target"] == "native"


def test_unused_donors_are_noted_and_not_opened(donors: Path) -> None:
    text = recipe()
    text["donors"]["c"] = {"model": "./absent"}
    assert "donor 'c' is not used" in plan_of(donors, text).notes


def test_layers_that_need_their_own_embedding_are_refused_elsewhere(donors: Path) -> None:
    save_donor(donors / "gemma4", "gemma4_text", num_kv_shared_layers=0)
    text = {
        "donors": {"a": {"model": "llama"}, "g": {"model": "gemma4"}},
        "slots": [{"from": "a", "layer": 0}, {"from": "g", "layer": 0}],
        "bridges": UNFITTED,
    }
    with pytest.raises(
        HybridizeError, match="reads an embedding of the tokens of its own"
    ) as caught:
        plan_of(donors, text)
    assert "slots[1].from" in str(caught.value)
    assert plan_of(donors, text | {"embeddings": "g", "head": "g"}).target == "hybrid"


@pytest.mark.parametrize(
    ("model_type", "found"),
    [
        ("xlstm", "is of type 'xlstm': its layers keep their state in a cache class of their own"),
        ("lama", "no causal language model of this type; did you mean llama?"),
        ("gemma3", "it holds several models"),
        ("bert", "it is an encoder or encoder-decoder"),
    ],
)
def test_architectures_that_cannot_be_reproduced_are_refused_by_name(
    tmp_path: Path, model_type: str, found: str
) -> None:
    save_donor(tmp_path / "a", "llama")
    config = tmp_path / "a/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": model_type}))
    text = {"donors": {"a": {"model": "a"}}, "slots": [{"from": "a", "layer": 0}]}
    with pytest.raises(HybridizeError, match=found):
        plan_of(tmp_path, text)


def test_a_quantized_donor_is_refused(tmp_path: Path) -> None:
    save_donor(tmp_path / "llama", "llama")
    config = tmp_path / "llama/config.json"
    data = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    config.write_text(json.dumps(data))
    text = {"donors": {"a": {"model": "llama"}}, "slots": [{"from": "a", "layer": 0}]}
    with pytest.raises(HybridizeError, match="is quantized"):
        plan_of(tmp_path, text)
