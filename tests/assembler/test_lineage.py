"""Fine-tunes of one model are told from models trained apart, by their weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridize.assembler.plan.report import plan_as_dict, plan_table
from hybridize.console import show
from hybridize.model import lineage
from hybridize.model.checkpoint import open_checkpoint
from hybridize.model.donors import Donor, load_donor
from hybridize.model.lineage import TENSORS, Lineages, compare
from tests.support.stacks import plan_of, save_donor
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a fine-tune of it, a stranger of its shape, and others."""
    folder = tmp_path_factory.mktemp("lineage")
    save_donor(folder / "base", "llama")
    fine_tune(folder / "tuned", noise=0.2)
    save_donor(folder / "stranger", "llama", seed=1)
    save_donor(folder / "wide", "llama", hidden_size=48, head_dim=8)
    save_donor(folder / "gpt2", "gpt2")
    return folder


def fine_tune(folder: Path, *, noise: float, dtype: torch.dtype = torch.float32) -> Path:
    """The base after training: every matrix has moved by this share of its length."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            moved = torch.randn(parameter.shape, generator=generator)
            parameter += noise * parameter.std() * moved
    model.to(dtype).save_pretrained(folder)
    return folder


def donor(folder: Path) -> Donor:
    return load_donor(folder, name=folder.name, source=folder.name, place=folder.name)


def test_a_model_is_related_to_itself(folder: Path) -> None:
    found = compare(donor(folder / "base"), donor(folder / "base"))
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert (found.related, found.num_tensors) == (True, TENSORS)


@pytest.mark.parametrize("noise", [0.01, 0.2, 0.45])
def test_a_fine_tune_is_related_by_how_far_it_moved(
    folder: Path, tmp_path: Path, noise: float
) -> None:
    found = compare(donor(folder / "base"), donor(fine_tune(tmp_path / "tuned", noise=noise)))
    assert found.cosine == pytest.approx(1 / math.sqrt(1 + noise**2), abs=0.02)
    assert found.cosine is not None
    assert found.cosine > 0.9
    assert found.related


def test_models_made_apart_are_strangers_either_way_round(folder: Path) -> None:
    one, other = donor(folder / "base"), donor(folder / "stranger")
    found = compare(one, other)
    assert found.cosine == pytest.approx(0, abs=0.05)
    assert not found.related
    assert compare(other, one).cosine == pytest.approx(found.cosine, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_read_as_torch_reads_them(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 3e-5, -6e-8, 65504.0, 0.1, -1e-3]).to(dtype)
    save_donor(tmp_path, "llama")
    save_file({**load_file(tmp_path / "model.safetensors"), "x": values}, tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "model.safetensors")
    assert lineage._sample(open_checkpoint(tmp_path).tensors["x"]) == values.tolist()


@pytest.mark.parametrize("shape", [(300, 7), (1, 257), (64, 64), (3, 5)])
def test_a_sample_reaches_from_the_first_number_to_the_end(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    """Four stretches of a large tensor, all of a small one."""
    values = torch.arange(shape[0] * shape[1], dtype=torch.float32).reshape(shape)
    save_donor(tmp_path, "llama")
    save_file({**load_file(tmp_path / "model.safetensors"), "x": values}, tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "model.safetensors")
    sample = lineage._sample(open_checkpoint(tmp_path).tensors["x"])
    assert sample == sorted(set(sample))
    assert sample[0] == 0
    assert len(sample) <= lineage.PIECES * lineage.LENGTH
    if values.numel() >= lineage.PIECES * lineage.LENGTH:
        assert len(sample) == lineage.PIECES * lineage.LENGTH
        assert sample[-1] > values.numel() - lineage.PIECES
    elif values.numel() <= lineage.LENGTH:
        assert len(sample) == values.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_fine_tune_of_another_dtype_is_related(
    folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    half = donor(fine_tune(tmp_path / "half", noise=0, dtype=dtype))
    found = compare(donor(folder / "base"), half)
    assert found.cosine == pytest.approx(1, abs=1e-4)
    assert found.num_tensors == TENSORS


@pytest.mark.parametrize("other", ["gpt2", "wide"])
def test_other_names_or_shapes_are_not_compared(folder: Path, other: str) -> None:
    found = compare(donor(folder / "base"), donor(folder / other))
    assert (found.cosine, found.num_tensors, found.related) == (None, 0, False)
    assert str(found) == f"base and {other}: no weights of the same name and shape"


def test_of_headers_alone_nothing_is_known(folder: Path, tmp_path: Path) -> None:
    """A plan of models of the hub reads headers; their weights are holes in the files."""
    save_donor(tmp_path / "hollow", "llama")
    file = tmp_path / "hollow/model.safetensors"
    nbytes = file.stat().st_size
    begin = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    with file.open("r+b") as stream:
        stream.truncate(begin)
        stream.truncate(nbytes)
    found = compare(donor(folder / "base"), donor(tmp_path / "hollow"))
    assert (found.cosine, found.num_tensors, found.related) == (None, TENSORS, False)
    assert str(found) == "base and hollow: unknown until their weights are on this machine"


def test_weights_that_are_no_numbers_say_nothing(folder: Path, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    assert compare(donor(folder / "base"), donor(tmp_path)).cosine is None


def test_pairs_are_compared_once_and_only_when_asked(folder: Path) -> None:
    found = Lineages({name: donor(folder / name) for name in ("base", "tuned", "stranger")})
    assert found.related("base", "base")
    assert found.compared == ()
    assert found.related("base", "tuned")
    assert found.related("tuned", "base")
    assert not found.related("stranger", "base")
    assert [(pair.one, pair.other) for pair in found.compared] == [
        ("base", "tuned"),
        ("stranger", "base"),
    ]


def recipe(above: str, **bridges: Any) -> dict[str, Any]:
    return {
        "donors": {"base": {"model": "base"}, above: {"model": above}},
        "slots": [{"from": "base", "layers": "0-1"}, {"from": above, "layers": "2-3"}],
        "bridges": {"init": "random", **bridges},
    }


def test_fine_tunes_need_no_bridge_and_stay_native(folder: Path) -> None:
    plan = plan_of(folder, recipe("tuned"))
    assert (plan.bridges, plan.target) == ({}, "native")
    plan = plan_of(folder, {**recipe("tuned"), "bridges": {}})  # nor text to fit one on
    assert (plan.bridges, plan.target, plan.calibration) == ({}, "native", None)


def test_strangers_of_one_width_are_bridged_and_make_a_hybrid(folder: Path) -> None:
    plan = plan_of(folder, recipe("stranger"))
    bridge = plan.bridges["2"]
    assert (bridge.kind, bridge.width_in, bridge.width_out) == ("linear", 32, 32)
    assert plan.target == "hybrid"
    assert plan.reason == "a bridge stands before slot 2"


@pytest.mark.parametrize(
    ("where", "tuned", "stranger"),
    [
        ("auto", [], ["2"]),
        ("changes", ["2"], ["2"]),
        ("width-changes", [], []),
        ("none", [], []),
        ([1], ["1"], ["1"]),
    ],
)
def test_where_a_recipe_says_otherwise_lineage_does_not_matter(
    folder: Path, where: Any, tuned: list[str], stranger: list[str]
) -> None:
    for name, expected in (("tuned", tuned), ("stranger", stranger)):
        plan = plan_of(folder, recipe(name, where=where))
        assert list(plan.bridges) == expected
        assert bool(plan.lineages) == (where == "auto")


def test_a_head_of_another_lineage_is_bridged(folder: Path) -> None:
    for name, expected in (("tuned", []), ("stranger", ["head"])):
        text = recipe(name) | {"slots": [{"from": "base", "layers": "0-3"}], "head": name}
        assert list(plan_of(folder, text).bridges) == expected


def test_a_swapped_module_of_another_lineage_is_bridged(folder: Path) -> None:
    for name, expected in (
        ("tuned", []),
        ("stranger", ["1.mlp.enter", "1.mlp.leave"]),
    ):
        slots: list[dict[str, Any]] = [
            {"from": "base", "layer": 0},
            {"from": "base", "layer": 1, "mlp": {"from": name, "layer": 2}},
        ]
        assert list(plan_of(folder, recipe(name) | {"slots": slots}).bridges) == expected


def test_the_plan_shows_what_was_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (
        ("tuned", "lineage    base and tuned: one basis (cosine 0.98 over 12 tensors)"),
        ("stranger", "lineage    base and stranger: strangers (cosine "),
    ):
        plan = plan_of(folder, recipe(name))
        show(plan_table(plan))
        assert words in capsys.readouterr().out
        (found,) = json.loads(json.dumps(plan_as_dict(plan)))["lineages"]
        assert (found["one"], found["other"], found["num_tensors"]) == ("base", name, TENSORS)
        assert (found["cosine"] > 0.9) == (name == "tuned")
