"""Bridges fitted on text, from the recipe to the model on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console, RenderableType
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from hybridize.assembler.assembly import assemble
from hybridize.assembler.assembly.assemble import Built, build
from hybridize.assembler.assembly.fit_report import fit_table, loss_rows, verdict
from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.fit import pace, swap_controls
from hybridize.console import duration
from hybridize.errors import HybridizeError
from hybridize.text.calibration import NOT_MEASURED, gather
from hybridize.torch_model.windows import DomainText, Reader, Windows, cut
from tests.support.readers import (
    code,
    in_another_basis,
    prose,
    save,
    save_reader,
    tokenizer,
    write_text,
)
from tests.support.stacks import build_in, generate, load, plan_of

SHAPE = {"hidden_size": 32, "num_hidden_layers": 4, "tie_word_embeddings": False}


@pytest.fixture
def donor(tmp_path: Path) -> PreTrainedModel:
    """A Llama whose updates are as small, beside its stream, as those of a trained model.

    Where they are as large as the stream, float32 itself is off by 1e-5.
    """
    model = save_reader(tmp_path / "donor", **SHAPE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight *= 0.5
    return save(model, tmp_path / "donor", tokenizer([prose()]))


def recipe(folder: Path, slots: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    """A recipe over donors that lie in `folder`, with text of its own."""
    names = {slot["from"] for slot in slots}
    names |= {part["from"] for slot in slots for part in slot.values() if isinstance(part, dict)}
    calibration = {"data": [write_text(folder)], "tokens": 3000, "length": 64}
    return {
        "donors": {name: {"model": name} for name in sorted(names)},
        "slots": slots,
        **keys,
        "calibration": {**calibration, **keys.get("calibration", {})},
    }


def halves(below: str, above: str) -> list[dict[str, Any]]:
    return [{"from": below, "layers": "0-1"}, {"from": above, "layers": "2-3"}]


@torch.no_grad()
def difference(one: PreTrainedModel, other: PreTrainedModel, ids: Tensor) -> float:
    """Largest difference of two models' logits."""
    return float((one(ids).logits - other(ids).logits).abs().max())


def losses(built: Built) -> dict[str, Any]:
    assert built.fit is not None
    return dict(built.fit["losses"])


def permutation(width: int) -> Tensor:
    return torch.eye(width)[torch.randperm(width, generator=torch.Generator().manual_seed(3))]


def rotation(width: int) -> Tensor:
    return torch.nn.init.orthogonal_(
        torch.empty(width, width), generator=torch.Generator().manual_seed(4)
    )


def padding(width: int) -> Tensor:
    return torch.eye(width + 16, width)


@pytest.mark.parametrize("init", ["auto", "ridge", "procrustes"])
@pytest.mark.parametrize("basis", [permutation, rotation, padding])
@pytest.mark.parametrize("order", [("donor", "twin"), ("twin", "donor")])
def test_a_twin_in_another_basis_is_recovered(
    tmp_path: Path, donor: PreTrainedModel, init: str, basis: Any, order: tuple[str, str]
) -> None:
    """Half a model and half its twin, bridged, are the model again."""
    twin = in_another_basis(donor, basis(32))
    save(twin, tmp_path / "twin", tokenizer([prose()]))
    ids = torch.randint(1, 280, (2, 40), generator=torch.Generator().manual_seed(1))
    assert difference(donor, twin, ids) < 1e-5  # it is a twin
    built = build_in(tmp_path, recipe(tmp_path, halves(*order), bridges={"init": init}))
    assert difference(load(built.folder), donor, ids) < 1e-5
    assert built.fit is not None
    (fit,) = built.fit["bridges"]
    assert fit["r2"]["text"] > 0.999999
    assert fit["rms_ratio"] == pytest.approx(1, abs=1e-4)
    # To fill up with zeros, or to drop them, no fitted map does better than by rounding.
    auto = "identity" if basis is padding else "ridge"
    assert fit["init"] == {"auto": auto}.get(init, init)
    assert losses(built)["hybrid"]["text"]["per_byte"] == pytest.approx(
        losses(built)["donors"]["donor"]["text"]["per_byte"], abs=1e-5
    )


def test_a_fine_tune_needs_no_bridge_and_auto_says_so(tmp_path: Path) -> None:
    """Asked for a bridge between relatives, `auto` finds that nothing beats the identity."""
    donor = save_reader(tmp_path / "base", **SHAPE)
    save(donor, tmp_path / "copy", tokenizer([prose()]))
    built = build_in(
        tmp_path, recipe(tmp_path, halves("base", "copy"), bridges={"where": "changes"})
    )
    assert built.fit is not None
    assert built.fit["bridges"][0]["init"] == "identity"
    ids = torch.randint(1, 280, (2, 40))
    assert difference(load(built.folder), donor, ids) == 0


def test_the_manifest_keeps_the_fit_and_its_controls(tmp_path: Path) -> None:
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", "qwen3", seed=1, hidden_size=48, num_hidden_layers=4)
    built = build_in(tmp_path, recipe(tmp_path, halves("a", "b"), embeddings="a", head="b"))
    manifest = json.loads((built.folder / "hybridize.json").read_text())
    assert manifest["fit"] == built.fit
    (fit,) = manifest["fit"]["bridges"]
    assert fit["place"] == "before slot 2"
    assert fit["tokens"] + fit["held_out"] >= 2990
    assert fit["held_out"] / fit["tokens"] == pytest.approx(0.25, abs=0.1)
    assert manifest["fit"]["losses"].keys() == {"unigram", "donors", "null", "swaps", "hybrid"}
    assert manifest["fit"]["losses"]["null"].keys() == {"slots 2-3"}
    assert manifest["fit"]["losses"]["donors"].keys() == {"a", "b"}
    assert manifest["fit"]["start_tokens"]["donors"] == {"a": "none", "b": "none"}
    assert "| this hybrid |" in (built.folder / "README.md").read_text()
    assert verify(built.folder).ok


def read_windows(folder: Path, written: dict[str, Any]) -> tuple[Reader, Windows]:
    """What donor a reads with, and the text that a build of a recipe would read."""
    plan, documents = plan_of(folder, written), folder / "documents.jsonl"
    assert plan.calibration is not None
    gather(plan.calibration, plan.recipe, documents, tokens=3000, offline=True)
    reader = Reader("a", folder / "a", rows=288)
    (part,) = cut(documents, [DomainText("text", 3000, "")], reader, length=64, held_out=0.2)
    return reader, part


def rendered(what: RenderableType) -> str:
    file = StringIO()
    Console(file=file, width=200).print(what)
    return file.getvalue()


def test_donors_alone_are_measured_as_transformers_measures_them(tmp_path: Path) -> None:
    """Nats per token of a donor, against its own class on the same stretches."""
    donor = save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", seed=1, hidden_size=48, num_hidden_layers=4)
    written = recipe(tmp_path, halves("a", "b"))
    built = build_in(tmp_path, written)
    reader, part = read_windows(tmp_path, written)
    nats = tokens = 0.0
    for text in part.held_out:
        ids = reader.encode([text]).tokens
        with torch.no_grad():
            nats += float(donor(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    predicted = reader.encode(part.held_out).num_bytes(part.held_out)
    measured = losses(built)["donors"]["a"]["text"]
    assert measured["per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    assert measured["per_byte"] == pytest.approx(nats / predicted, rel=1e-5)
    assert 0.98 < predicted / part.held_out_bytes < 1


@pytest.mark.parametrize("kind", ["linear", "lowrank", "block"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_every_kind_builds_and_gives_what_was_measured(
    tmp_path: Path, kind: str, norm: bool, bias: bool
) -> None:
    """The loss in the manifest is that of the model on disk, and better than a random bridge's."""
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", "qwen3", seed=1, hidden_size=48, num_hidden_layers=4)
    bridges = {"kind": kind, "norm": norm, "bias": bias}
    built = build_in(tmp_path, recipe(tmp_path, halves("a", "b"), bridges=bridges))
    assert built.fit is not None
    (fit,) = built.fit["bridges"]
    assert fit["init"] == "ridge"
    random = build_in(
        tmp_path,
        recipe(tmp_path, halves("a", "b"), bridges={**bridges, "init": "random"}),
        out="random",
    )
    assert random.fit is not None
    assert random.fit["bridges"] == []
    model = load(built.folder)
    assert model.config.num_hidden_layers == (5 if kind == "block" else 4)
    assert torch.equal(generate(model).sequences, generate(model, use_cache=False).sequences)
    assert verify(built.folder).ok


def test_a_foreign_block_in_the_middle_gets_a_bridge_in_and_one_out(tmp_path: Path) -> None:
    """Below the head stands the donor whose vocabulary it is; the block may have another."""
    save_reader(tmp_path / "s", **SHAPE)
    save_reader(
        tmp_path / "d", "qwen3", seed=1, hidden_size=48, num_hidden_layers=4,
        text=code(), vocabulary=272,
    )  # fmt: skip
    slots = [
        {"from": "s", "layers": "0-1"},
        {"from": "d", "layers": "1-2"},
        {"from": "s", "layers": "2-3"},
    ]
    built = build_in(tmp_path, recipe(tmp_path, slots, calibration={"length": 32}))
    assert built.fit is not None
    into, out = built.fit["bridges"]
    assert (into["place"], out["place"]) == ("before slot 2", "before slot 4")
    assert 0.3 < into["aligned"] < 1  # tokens of the two end at other places
    assert out["aligned"] == 1  # both sides read with the tokenizer of s
    assert losses(built)["null"].keys() == {"slots 2-3", "slots 4-5"}
    model = load(built.folder)
    assert model.config.vocab_size == 288
    written = (built.folder / "tokenizer.json").read_bytes()
    assert written == (tmp_path / "s" / "tokenizer.json").read_bytes()
    assert torch.equal(generate(model).sequences, generate(model, use_cache=False).sequences)


def test_a_bridge_before_the_head(tmp_path: Path, donor: PreTrainedModel) -> None:
    save(in_another_basis(donor, rotation(32)), tmp_path / "twin", tokenizer([prose()]))
    slots = [{"from": "donor", "layers": "0-3"}]
    written = recipe(tmp_path, slots, head="twin")
    written["donors"]["twin"] = {"model": "twin"}
    built = build_in(tmp_path, written)
    assert built.fit is not None
    assert built.fit["bridges"][0]["place"] == "before the head"
    ids = torch.randint(1, 280, (2, 40))
    assert difference(load(built.folder), donor, ids) < 1e-5


@pytest.mark.parametrize("part", ["mixer", "mlp"])
@pytest.mark.parametrize("basis", [rotation, padding])
def test_a_swapped_module_of_a_twin_is_recovered(
    tmp_path: Path, donor: PreTrainedModel, part: str, basis: Any
) -> None:
    """Bridges into a swapped module and out of it, of another width or basis."""
    twin = in_another_basis(donor, basis(32))
    save(twin, tmp_path / "twin", tokenizer([prose()]))
    slots = [
        {"from": "donor", "layer": 0},
        {"from": "donor", "layer": 1, part: {"from": "twin", "layer": 1}},
        {"from": "donor", "layers": "2-3"},
    ]
    built = build_in(tmp_path, recipe(tmp_path, slots))
    assert built.fit is not None
    name = "self_attn" if part == "mixer" else "mlp"
    places = [fit["place"] for fit in built.fit["bridges"]]
    assert places == [f"before slot 1's {name}", f"behind slot 1's {name}"]
    ids = torch.randint(1, 280, (2, 40))
    assert difference(load(built.folder), donor, ids) < 1e-5


def test_the_same_recipe_gives_the_same_fit(tmp_path: Path) -> None:
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", seed=1, hidden_size=48, num_hidden_layers=4)
    written = recipe(tmp_path, halves("a", "b"))
    one, two = (build_in(tmp_path, written, out=name) for name in ("one", "two"))
    for name in ("model.safetensors", "hybridize.json", "README.md"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    other = build_in(
        tmp_path,
        {**written, "calibration": {**written["calibration"], "tokens": 2000}},
        out="other",
    )
    key = "model.bridges.2.proj.weight"
    tensors = [load_file(b.folder / "model.safetensors")[key] for b in (one, other)]
    assert not torch.equal(*tensors)


def test_a_weak_bridge_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between states that have nothing to do with each other."""
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", seed=1, hidden_size=48, num_hidden_layers=4)
    built = build_in(
        tmp_path, recipe(tmp_path, halves("a", "b"), bridges={"kind": "lowrank", "rank": 1})
    )
    assert built.fit is not None
    assert built.fit["bridges"][0]["weak"] == ["text"]
    assert verdict(built.fit)[0] == (
        "warning: the bridge before slot 2 explains less than 20% of the stream that it should "
        "give, on text"
    )


@pytest.mark.parametrize(("tokens", "unit"), [(46_000, "tokens"), (400_000, "bytes")])
def test_text_that_is_too_short_is_an_error_before_anything_is_written(
    tmp_path: Path, tokens: int, unit: str
) -> None:
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", seed=1, hidden_size=48, num_hidden_layers=4)
    with pytest.raises(HybridizeError) as caught:
        build_in(tmp_path, recipe(tmp_path, halves("a", "b"), calibration={"tokens": tokens}))
    (finding,) = caught.value.findings
    assert re.fullmatch(
        rf"the text of 'text' is shorter than needed: \d+ {unit} for {tokens}( tokens)?",
        finding.found,
    )
    assert re.search(r"recipe\.yaml:\d+:\d+: calibration\.data\[0\]$", finding.place or "")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.staging").exists()


def test_donors_without_tokenizers_are_refused_by_the_plan(tmp_path: Path) -> None:
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", seed=1, hidden_size=48, num_hidden_layers=4)
    (tmp_path / "b" / "tokenizer.json").unlink()
    (tmp_path / "a" / "tokenizer.json").unlink()
    written = recipe(tmp_path, halves("a", "b"))
    del written["calibration"]
    with pytest.raises(HybridizeError) as caught:
        build_in(tmp_path, written)
    assert [str(finding).split(": ", 1)[1] for finding in caught.value.findings] == [
        f"donors.{name}: donor '{name}' has no tokenizer files, and cannot read the text that "
        "bridges are fitted on\n  fix: put its tokenizer files into its folder, or write init: "
        "random under bridges"
        for name in ("a", "b")
    ]


def test_a_donor_with_broken_weights_is_named(tmp_path: Path) -> None:
    save_reader(tmp_path / "a", **SHAPE)
    broken = save_reader(tmp_path / "b", seed=1, hidden_size=48, num_hidden_layers=4)
    with torch.no_grad():
        broken.get_parameter("model.layers.0.mlp.down_proj.weight")[3, 3] = float("nan")
    save(broken, tmp_path / "b", tokenizer([prose()]))
    with pytest.raises(HybridizeError) as caught:
        build_in(tmp_path, recipe(tmp_path, halves("a", "b")))
    assert str(caught.value) == (
        "the states of donor 'b' at the bridge before slot 2 are not finite numbers\n"
        "  fix: does each donor alone give finite logits in this dtype?"
    )
    assert not (tmp_path / "out").exists()


def test_sequences_are_no_longer_than_the_donors_read(tmp_path: Path) -> None:
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", "gpt2", seed=1, n_embd=48, n_layer=4, n_positions=40, text=code())
    written = recipe(tmp_path, halves("a", "b"), head="a")
    with pytest.raises(HybridizeError) as caught:
        build_in(tmp_path, written)
    assert str(caught.value).split(": ", 1)[1] == (
        "calibration.length: sequences of 64 tokens are longer than donor 'b' reads: 40\n"
        "  fix: write length: 40, or less"
    )
    with pytest.raises(HybridizeError, match="its tokenizer makes more of the same text"):
        build_in(tmp_path, {**written, "calibration": {**written["calibration"], "length": 40}})
    built = build_in(tmp_path, {**written, "calibration": {**written["calibration"], "length": 24}})
    assert losses(built)["hybrid"]["text"]["per_byte"] > 0


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_donors_in_other_dtypes(tmp_path: Path, dtypes: tuple[str, str]) -> None:
    """The fit runs in the donors' dtypes, the bridge is kept in that of the result."""
    for seed, (name, dtype) in enumerate(zip("ab", dtypes, strict=True)):
        model = save_reader(tmp_path / name, seed=seed, **{**SHAPE, "hidden_size": 32 + 16 * seed})
        save(model.to(getattr(torch, dtype)), tmp_path / name, tokenizer([prose()]))
    built = build_in(tmp_path, recipe(tmp_path, halves("a", "b")))
    tensors = load_file(built.folder / "model.safetensors")
    wanted = torch.float32 if "float32" in dtypes else torch.bfloat16
    assert {tensor.dtype for tensor in tensors.values()} == {wanted}
    assert verify(built.folder).ok


def test_relatives_are_measured_where_the_recipe_has_text(tmp_path: Path) -> None:
    """No bridge and a native result: the table of losses alone."""
    donor = save_reader(tmp_path / "base", **SHAPE)
    save(donor, tmp_path / "copy", tokenizer([prose()]))
    built = build_in(tmp_path, recipe(tmp_path, halves("base", "copy")))
    assert built.plan.target == "native"
    assert built.fit is not None
    assert built.fit["bridges"] == []
    assert losses(built)["hybrid"] == losses(built)["donors"]["base"]
    assert losses(built)["null"] == {}


@pytest.mark.parametrize("layer", [0, 2])
def test_around_a_swapped_module_auto_takes_what_the_loss_says(tmp_path: Path, layer: int) -> None:
    """Both maps or neither: the better of the two on held-out text."""
    save_reader(tmp_path / "host", "qwen3", **SHAPE)
    save_reader(tmp_path / "guest", "olmo_hybrid", seed=1, **SHAPE)
    slots: list[dict[str, Any]] = [{"from": "host", "layer": i} for i in range(4)]
    slots[layer]["mixer"] = {"from": "guest", "layer": layer}
    found = {}
    for init in ("auto", "ridge", "identity"):
        written = recipe(tmp_path, slots, bridges={"init": init})
        built = build_in(tmp_path, written, out=init)
        assert built.fit is not None
        found[init] = losses(built)["hybrid"]["text"]["per_byte"]
        chosen = {fit["init"] for fit in built.fit["bridges"]}
        assert len(chosen) == (0 if init == "identity" else 1)
    assert found["auto"] == pytest.approx(min(found["ridge"], found["identity"]), rel=1e-6)


def swap(part: str) -> list[dict[str, Any]]:
    slots: list[dict[str, Any]] = [{"from": "host", "layer": i} for i in range(4)]
    slots[1][part] = {"from": "guest", "layer": 1}
    return slots


@pytest.mark.parametrize(
    ("part", "module", "last"), [("mixer", "self_attn", "o_proj"), ("mlp", "mlp", "down_proj")]
)
def test_the_control_without_a_swapped_module_is_the_model_without_it(
    tmp_path: Path, part: str, module: str, last: str
) -> None:
    """The same loss as that of a guest whose module gives zeros; no bridge, so no fit, either."""
    host = save_reader(tmp_path / "host", **SHAPE)
    save(host, tmp_path / "guest", tokenizer([prose()]))
    whole = losses(build_in(tmp_path, recipe(tmp_path, swap(part)), out="whole"))
    with torch.no_grad():
        host.get_parameter(f"model.layers.1.{module}.{last}.weight").zero_()
    save(host, tmp_path / "guest", tokenizer([prose()]))
    without = losses(build_in(tmp_path, recipe(tmp_path, swap(part)), out="without"))
    (controls,) = whole["swaps"]
    assert (controls["slot"], controls["module"]) == (1, module)
    assert controls["removed"]["text"] == without["hybrid"]["text"]
    assert controls["removed"]["text"] != whole["hybrid"]["text"]


def test_a_matrix_for_a_swapped_module_is_the_host_where_that_is_a_matrix(tmp_path: Path) -> None:
    """GPT-2's MLP without its bend is affine: the control has the loss of the host alone."""
    shape: dict[str, Any] = {"n_layer": 4, "activation_function": "linear"}
    save_reader(tmp_path / "host", "gpt2", **shape)
    save_reader(tmp_path / "guest", "gpt2", seed=1, **shape)
    built = build_in(tmp_path, recipe(tmp_path, swap("mlp"), calibration={"tokens": 6000}))
    assert [fit["place"] for fit in built.fit["bridges"]] == [  # type: ignore[index]
        "before slot 1's mlp",
        "behind slot 1's mlp",
    ]
    (controls,) = losses(built)["swaps"]
    alone = losses(built)["donors"]["host"]["text"]["per_byte"]
    assert controls["matrix"]["text"]["per_byte"] == pytest.approx(alone, abs=1e-5)
    assert controls["removed"]["text"]["per_byte"] != pytest.approx(alone, abs=1e-4)
    (words,) = verdict(built.fit)  # type: ignore[arg-type]
    assert words.startswith("text: ")
    shown = dict(loss_rows(built.fit))  # type: ignore[arg-type]
    assert shown["slot 1 without its mlp"] == controls["removed"]
    assert shown["a matrix for slot 1's mlp"] == controls["matrix"]


def test_many_swaps_are_fitted_in_as_many_passes_as_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = save_reader(tmp_path / "host", **SHAPE)
    save(host, tmp_path / "guest", tokenizer([prose()]))
    slots = [{"from": "host", "layer": i, "mlp": {"from": "guest", "layer": i}} for i in range(4)]
    one = build_in(tmp_path, recipe(tmp_path, slots), out="one")
    monkeypatch.setattr(swap_controls, "ROOM", 2 * 2 * 2 * 32**2 * 8)
    two = build_in(tmp_path, recipe(tmp_path, slots), out="two")
    assert [found["slot"] for found in losses(one)["swaps"]] == [0, 1, 2, 3]
    assert losses(one) == losses(two)


def test_measuring_can_be_switched_off(tmp_path: Path) -> None:
    """The bridges are the same ones, and nothing else runs the models."""
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", seed=1, hidden_size=48, num_hidden_layers=4)
    stack = recipe(tmp_path, halves("a", "b"), embeddings="a", head="b")
    whole = build_in(tmp_path, stack)
    stack["calibration"]["measure"] = False
    bare = build_in(tmp_path, stack, out="bare")
    assert whole.fit is not None
    assert bare.fit is not None
    assert bare.fit["losses"] is None
    assert bare.fit["bridges"] == whole.fit["bridges"]
    assert verdict(bare.fit) == [line for line in verdict(whole.fit) if "warning" in line]
    assert "Not measured." in (bare.folder / "README.md").read_text()
    assert NOT_MEASURED in rendered(fit_table(bare.fit))
    assert verify(bare.folder).ok
    ids = torch.randint(1, 280, (2, 40))
    assert difference(load(bare.folder), load(whole.folder), ids) == 0


def test_measuring_can_be_limited(tmp_path: Path) -> None:
    """Losses of the first stretches that are held out, of every model."""
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", seed=1, hidden_size=48, num_hidden_layers=4)
    stack = recipe(tmp_path, halves("a", "b"), embeddings="a", head="b")
    whole = losses(build_in(tmp_path, stack))
    stack["calibration"]["measure"] = 128
    few = losses(build_in(tmp_path, stack, out="few"))
    pairs = [(few["hybrid"], whole["hybrid"]), (few["unigram"], whole["unigram"])]
    pairs += [(few["donors"][name], whole["donors"][name]) for name in "ab"]
    pairs += [(few["null"]["slots 2-3"], whole["null"]["slots 2-3"])]
    for some, every in pairs:
        assert len(every["text"]["stretches"]) > 2
        assert some["text"]["stretches"] == pytest.approx(every["text"]["stretches"][:2], rel=1e-5)


def test_without_bridges_there_is_nothing_to_read_text_for(tmp_path: Path) -> None:
    save_reader(tmp_path / "a", **SHAPE)
    slots = [{"from": "a", "layers": "0-3"}]
    assert plan_of(tmp_path, recipe(tmp_path, slots)).calibration is not None
    off = recipe(tmp_path, slots, calibration={"measure": False})
    assert plan_of(tmp_path, off).calibration is None


def test_the_second_process_tells_how_long_it_will_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", seed=1, hidden_size=48, num_hidden_layers=4)
    plan = plan_of(tmp_path, recipe(tmp_path, halves("a", "b"), head="b"))
    built = build(plan, tmp_path / "out")
    assert built.fit is not None
    assert "fitting bridges: about " in capsys.readouterr().err


def test_progress_counts_heads_and_ends_where_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told in all, and how long it will take, comes first; then it only grows."""
    save_reader(tmp_path / "a", **SHAPE)
    save_reader(tmp_path / "b", "qwen3", seed=1, hidden_size=48, num_hidden_layers=4)
    told: list[tuple[Any, ...]] = []

    @contextmanager
    def telling(_: str) -> Iterator[Callable[..., None]]:
        yield lambda *args: told.append(args)

    monkeypatch.setattr(assemble, "token_progress", telling)
    monkeypatch.setattr(pace, "timed", lambda *_: pace.Pace(layers=0.01, head=0.03))
    written = recipe(tmp_path, halves("a", "b"), head="b")
    build_in(tmp_path, written)
    _, part = read_windows(tmp_path, written)
    every, judged = (64 * len(texts) for texts in ((*part.fit, *part.held_out), part.held_out))
    # Two slots of a, and all four layers of b alone; a hybrid, its null control, and two donors.
    total = round(every * 1.5 + judged * 4 * 4)
    assert told[0] == (0, total, f"about {duration(total * 0.01)}")
    dones = [done for done, *_ in told]
    assert dones == sorted(dones)
    assert 0.9 * total < dones[-1] <= total
