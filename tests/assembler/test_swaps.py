"""Sub-modules of donors of another lineage stand between bridges of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.model.states import State
from tests.support.stacks import assert_same, build_in, generate, load, save_donor, tokens

SIDES = ("enter", "leave")


@pytest.fixture
def donors(tmp_path: Path) -> Path:
    save_donor(tmp_path / "host", "llama")
    save_donor(tmp_path / "guest", "qwen3_next", seed=1)
    save_donor(tmp_path / "wide", "qwen3", seed=2, hidden_size=48)
    return tmp_path


def recipe(part: str, guest: str, **bridges: Any) -> dict[str, Any]:
    """A host with the mixer or the MLP of layer 2 of another donor in slot 1."""
    return {
        "donors": {"host": {"model": "host"}, guest: {"model": guest}},
        "slots": [
            {"from": "host", "layer": 0},
            {"from": "host", "layer": 1, part: {"from": guest, "layer": 2}},
            {"from": "host", "layers": "2-3"},
        ],
        "bridges": bridges,
    }


PARTS = [
    ("mixer", "guest", "self_attn", "linear_attn"),
    ("mlp", "guest", "mlp", "mlp"),
    ("mlp", "wide", "mlp", "mlp"),
]


@pytest.mark.parametrize("kind", ["linear", "lowrank", "block", "identity"])
@pytest.mark.parametrize(("part", "guest", "path", "module"), PARTS)
def test_bridges_of_a_swap_are_built_without_text(
    donors: Path, part: str, guest: str, path: str, module: str, kind: str
) -> None:
    """A whole layer, or nothing, makes no sense within a layer: there those become linear."""
    built = build_in(donors, recipe(part, guest, kind=kind, init="random", norm=True))
    assert list(built.plan.bridges) == [f"1.{path}.{side}" for side in SIDES]
    enter, leave = built.plan.bridges.values()
    host, width = ("host", State(1, path)), 48 if guest == "wide" else 32
    assert (enter.reads, enter.writes) == (host, (guest, State(2, module)))
    assert (leave.reads, leave.writes) == (
        (guest, State(2, module, "out")),
        ("host", State(1, path, "out")),
    )
    assert enter.in_words() == f"before slot 1's {path}"
    assert leave.in_words() == f"behind slot 1's {path}"
    assert built.plan.reason == f"a bridge stands before slot 1's {path}"

    got = load_file(built.folder / "model.safetensors")
    inner = "down.weight" if kind == "lowrank" else "proj.weight"
    rows = {"enter": width, "leave": 32}
    for bridge, side in zip((enter, leave), SIDES, strict=True):
        assert bridge.kind == ("lowrank" if kind == "lowrank" else "linear")
        prefix = f"model.layers.1.{path}.{side}"
        shapes = {n: tuple(t.shape) for n, t in got.items() if n.startswith(f"{prefix}.")}
        assert shapes == {f"{prefix}.{n}": shape for n, shape in bridge.shapes().items()}
        assert shapes[f"{prefix}.{inner}"][0] == (8 if kind == "lowrank" else rows[side])
    ends = [got[f"model.layers.1.{path}.{side}.{inner}"] for side in SIDES]
    assert not torch.equal(ends[0], ends[1])  # two bridges of one recipe are no twins

    model = load(built.folder)
    ids, mask = tokens()
    assert model(ids, attention_mask=mask).logits.isfinite().all()
    cached, plain = generate(model), generate(model, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    assert verify(built.folder, whole=True, worker=LocalWorker()).ok


@pytest.mark.parametrize("kind", ["linear", "lowrank", "identity"])
@pytest.mark.parametrize(("part", "path"), [("mixer", "self_attn"), ("mlp", "mlp")])
def test_identities_around_a_swap_change_nothing(
    donors: Path, part: str, path: str, kind: str
) -> None:
    bridges = {"kind": kind, "init": "identity"}
    built = build_in(donors, recipe(part, "guest", **bridges), "bridged")
    plain = build_in(donors, recipe(part, "guest", where="width-changes"), "plain")
    assert list(built.plan.bridges) == [f"1.{path}.{side}" for side in SIDES]
    assert plain.plan.bridges == {}
    assert_same(load(built.folder), load(plain.folder))


def test_gradients_reach_the_bridges_of_a_swap(donors: Path) -> None:
    built = build_in(donors, recipe("mixer", "guest", init="random"))
    model = load(built.folder).train()
    ids, mask = tokens()
    model(ids, attention_mask=mask, labels=ids).loss.backward()
    for side in SIDES:
        bridge = model.get_submodule(f"model.layers.1.self_attn.{side}")
        assert all(p.grad.isfinite().all() and p.grad.any() for p in bridge.parameters())
