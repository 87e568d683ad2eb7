"""A bridging layer begins as nothing, in every architecture, and can learn to be something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hybridize.architectures.residual import is_output
from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.bridges.block import obstacle
from hybridize.assembler.plan.outputs import hybrid_config
from hybridize.assembler.plan.planning import Plan
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.errors import HybridizeError
from hybridize.model.states import State
from hybridize.runtime import HybridForCausalLM
from hybridize.torch_model.loading import Weights
from tests.support.families import ACCEPTED
from tests.support.stacks import assert_same, build_in, load, plan_of, save_donor, tokens
from tests.support.tiny import FAMILIES

#: Of which the plan says that a copy of a layer would not begin as nothing.
UNABLE = {
    "beam": "layers of type 'beam' scale the stream itself",
    "doge": "layers of type 'doge' scale the stream itself",
    "gemma4_text": "layers of type 'gemma4_text' scale the stream itself",
    "gemma4_unified_text": "layers of type 'gemma4_unified_text' scale the stream itself",
    "kolibri1": "no output projection is known in its moe",
}


def expanded(folder: Path, model_type: str) -> Plan:
    """A plan for all layers of a donor, each behind a bridging layer."""
    save_donor(folder / "donor", model_type)
    plain: dict[str, Any] = {
        "donors": {"a": {"model": "donor"}},
        "slots": [{"from": "a", "layers": "0-1"}],
        "target": "hybrid",
    }
    depth = plan_of(folder, plain).donors["a"].depth
    where = list(range(depth))
    bridges = {"kind": "block", "where": where, "init": "identity", "bias": False}
    layers = {"slots": [{"from": "a", "layers": f"0-{depth - 1}"}], "bridges": bridges}
    return plan_of(folder, plain | layers)


def with_made_layers(plan: Plan) -> HybridForCausalLM:
    """Of a plan, with the bridging layers that it asks for, and without the maps before them."""
    return Weights(plan.donors).model({**hybrid_config(plan), "bridges": {}})


def check_that_made_layers_are_nothing(plan: Plan) -> HybridForCausalLM:
    depth = plan.donors["a"].depth
    assert [(slot.layer, slot.made) for slot in plan.slots] == [
        (layer, made) for layer in range(depth) for made in (True, False)
    ]
    model = with_made_layers(plan)
    assert_same(model, Weights(plan.donors).alone("a"))
    return model


def check_that_made_layers_can_learn(model: HybridForCausalLM) -> None:
    """Were two matrices of one path zero, neither would ever get a gradient."""
    model.requires_grad_(True)
    ids, mask = tokens()
    model(ids, attention_mask=mask, labels=ids).loss.backward()
    slots = enumerate(zip(model.config.slots, model.model.layers, strict=True))
    for index, (slot, layer) in slots:
        if not slot.get("made"):
            continue
        outputs = {n: p for n, p in layer.named_parameters() if is_output(n)}
        assert outputs, index
        for name, parameter in outputs.items():
            assert not parameter.any(), (index, name)
            assert parameter.grad is not None, (index, name)
            assert parameter.grad.isfinite().all(), (index, name)
            assert parameter.grad.any(), (index, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridging_layer_begins_as_nothing_and_learns(tmp_path: Path, family: str) -> None:
    """The stack with one before every layer is the donor, bit for bit, with a cache, too."""
    model = check_that_made_layers_are_nothing(expanded(tmp_path, family))
    check_that_made_layers_can_learn(model)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in ACCEPTED if name not in FAMILIES])
def test_every_accepted_type_has_bridging_layers_or_a_reason(
    tmp_path: Path, model_type: str
) -> None:
    if model_type == "ctrl":
        pytest.skip("its checkpoints name the embedding as no other type does")
    if model_type not in UNABLE:
        model = check_that_made_layers_are_nothing(expanded(tmp_path, model_type))
        check_that_made_layers_can_learn(model)
        return
    with pytest.raises(HybridizeError) as caught:
        expanded(tmp_path, model_type)
    assert UNABLE[model_type] in str(caught.value)


def test_a_layer_that_would_not_be_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HybridizeError) as caught:
        expanded(tmp_path, "doge")
    assert str(caught.value.findings[1]).replace(f"{tmp_path}/", "") == (
        "recipe.yaml:5:3: slots[0]: layer 1 of donor 'a' cannot be a bridging layer: layers of "
        "type 'doge' scale the stream itself\n  fix: use kind: linear"
    )


def test_a_layer_of_unknown_outputs_is_refused(tmp_path: Path) -> None:
    """A layer whose MLP were left as it is would be no beginning from nothing."""
    save_donor(tmp_path / "donor", "llama")
    recipe = {"donors": {"a": {"model": "donor"}}, "slots": [{"from": "a", "layer": 0}]}
    layer = plan_of(tmp_path, recipe).donors["a"].anatomy.layers[2]
    assert obstacle(layer, "llama") is None
    for name in [name for name in layer.tensors if "down_proj" in name]:
        layer.tensors[name.replace("down_proj", "back")] = layer.tensors.pop(name)
    assert obstacle(layer, "llama") == "no output projection is known in its mlp"
    for name in [name for name in layer.tensors if "o_proj" in name]:
        layer.tensors[name.replace("o_proj", "back")] = layer.tensors.pop(name)
    assert obstacle(layer, "llama") == "no output projection is known in its self_attn and mlp"


def halves(above: str, **bridges: Any) -> dict[str, Any]:
    return {
        "donors": {"a": {"model": "a"}, "b": {"model": above}},
        "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
        "bridges": {"kind": "block", "init": "random", **bridges},
    }


@pytest.mark.parametrize("above", ["same", "wide"])
def test_a_block_bridge_is_built_without_text(tmp_path: Path, above: str) -> None:
    """On disk: zeros where a bridging layer writes, its donor's bytes elsewhere."""
    save_donor(tmp_path / "a", "llama")
    save_donor(tmp_path / "same", "qwen3", seed=1)
    save_donor(tmp_path / "wide", "qwen3", seed=1, hidden_size=48)
    built = build_in(tmp_path, halves(above))
    (bridge,) = built.plan.bridges.values()
    assert (bridge.where, bridge.kind) == ("2", "block")
    assert (bridge.reads, bridge.writes) == (("a", State(2)), ("b", State(2)))
    assert [slot.made for slot in built.plan.slots] == [False, False, True, False, False]

    got, donor = tensors(built.folder), tensors(tmp_path / above)
    zeros = sorted(name for name, tensor in got.items() if not tensor.any())
    assert zeros == [
        "model.bridges.2.proj.bias",
        "model.layers.2.mlp.down_proj.weight",
        "model.layers.2.self_attn.o_proj.weight",
    ]
    for name, tensor in got.items():
        if name.startswith("model.layers.2.") and name not in zeros:
            assert torch.equal(tensor, donor[name]), name
        if name.startswith("model.layers.3."):
            assert torch.equal(tensor, donor[name.replace("layers.3", "layers.2")]), name
    model = load(built.folder)
    assert model.config.slots[2] == {"donor": "b", "layer": 2, "made": True}
    assert verify(built.folder, whole=True, worker=LocalWorker()).ok

    linear = build_in(tmp_path, halves(above, kind="linear"), "linear")
    assert_same(model, load(linear.folder))


def test_a_block_bridge_moves_the_bridges_above_it(tmp_path: Path) -> None:
    """Their places are those of the model, not of the recipe."""
    save_donor(tmp_path / "a", "llama")
    save_donor(tmp_path / "b", "llama", seed=1)
    recipe = halves("b", init="identity", bias=False) | {"head": "a"}
    recipe["slots"] = [
        *recipe["slots"],
        {"from": "a", "layer": 3},
        {"from": "b", "layer": 0, "mlp": {"from": "a", "layer": 1}},
    ]
    built = build_in(tmp_path, recipe)
    assert list(built.plan.bridges) == [
        "2", "5", "7", "8.mlp.enter", "8.mlp.leave", "9",
    ]  # fmt: skip
    assert [bridge.kind for bridge in built.plan.bridges.values()] == [
        "block", "block", "block", "linear", "linear", "block",
    ]  # fmt: skip
    assert [slot.made for slot in built.plan.slots] == [
        False, False, True, False, False, True, False, True, False, True,
    ]  # fmt: skip
    assert built.plan.picks[-1] == ("a", 3)  # the layer that stands before the head's final norm
    plain = build_in(tmp_path, recipe | {"bridges": {"where": "none"}}, "plain")
    assert_same(load(built.folder), load(plain.folder))
    assert verify(built.folder, whole=True, worker=LocalWorker()).ok


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, by name."""
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}
