"""Donors are found in folders and in the hub's cache, and what cannot be one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from hybridize.cli import main
from hybridize.errors import HybridizeError
from hybridize.model.checkpoint import open_checkpoint
from hybridize.model.depth_map import depth_map
from hybridize.model.donors import locate, open_model
from tests.support.stacks import (
    UNFITTED,
    assert_same,
    build_in,
    load,
    plan_of,
    save_donor,
    write_recipe,
)
from tests.support.tiny import FAMILIES, tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ONE = {"donors": {"a": {"model": "org/tiny"}}, "slots": [{"from": "a", "layers": "0-1"}]}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache as huggingface_hub lays it out, with one model in it."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    model = cache / "models--org--tiny"
    save_donor(model / "snapshots" / COMMIT, "llama")
    (model / "snapshots" / COMMIT / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (model / "refs").mkdir()
    (model / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return tmp_path


def test_a_hub_id_is_taken_from_the_cache_with_its_commit(hub: Path) -> None:
    plan = plan_of(hub, ONE)
    donor = plan.donors["a"]
    assert (donor.commit, donor.license, donor.source) == (COMMIT, "apache-2.0", "org/tiny")


def test_a_revision_is_pinned(hub: Path) -> None:
    pinned = {"model": "org/tiny", "revision": COMMIT}
    assert plan_of(hub, ONE | {"donors": {"a": pinned}}).donors["a"].commit == COMMIT
    with pytest.raises(HybridizeError, match=r"org/tiny@v2 is not on this machine"):
        plan_of(hub, ONE | {"donors": {"a": pinned | {"revision": "v2"}}})


def test_the_card_names_hub_donors_and_their_license(hub: Path) -> None:
    card = (build_in(hub, ONE).folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "base_model:\n- org/tiny" in card


def test_an_incomplete_download_is_named(hub: Path) -> None:
    (hub / "hub/models--org--tiny/snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(HybridizeError, match=r"no model\.safetensors"):
        plan_of(hub, ONE)


def test_a_folder_wins_over_a_hub_id_of_the_same_name(hub: Path) -> None:
    save_donor(hub / "org/tiny", "qwen3")
    assert plan_of(hub, ONE).donors["a"].model_type == "qwen3"


@pytest.mark.parametrize("model", ["./absent", "/absent", "a/b/c", "~/absent", "absent"])
def test_what_is_no_hub_id_is_a_folder(tmp_path: Path, model: str) -> None:
    with pytest.raises(HybridizeError, match="no such folder"):
        locate(model, revision=None, base=tmp_path, place=None, offline=True)


def test_inspect_takes_a_revision(hub: Path) -> None:
    assert open_model(f"org/tiny@{COMMIT}").folder.name == COMMIT


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_donor_has_its_place(tmp_path: Path, family: str) -> None:
    """inspect adds up: what is not in a layer is embedding, norm, head, or listed."""
    checkpoint = open_checkpoint(save_donor(tmp_path / "a", family))
    found = depth_map(checkpoint, "a")
    anatomy = found.anatomy
    outside = {t.name for t in (anatomy.embedding, *anatomy.head, *anatomy.norm, *anatomy.others)}
    inside = {t.name for layer in anatomy.layers for t in layer.tensors.values()}
    assert outside | inside == set(checkpoint.tensors)
    assert not outside & inside
    config = load(tmp_path / "a").config
    assert len(anatomy.layers) == config.num_hidden_layers
    assert anatomy.width == config.hidden_size
    assert anatomy.vocabulary == config.vocab_size
    assert all(layer.mixers or layer.mlps for layer in anatomy.layers)
    json.dumps(found.as_dict())


def test_a_depth_that_the_tensors_do_not_have_is_refused(tmp_path: Path) -> None:
    save_donor(tmp_path / "a", "llama")
    file = tmp_path / "a/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 6}))
    with pytest.raises(
        HybridizeError, match=r"config\.json says 6 layers, the tensors say otherwise"
    ):
        plan_of(tmp_path, ONE | {"donors": {"a": {"model": "a"}}})


def test_the_text_part_of_a_multimodal_checkpoint_is_a_donor(tmp_path: Path) -> None:
    """Most new bases are published with a vision tower around them."""
    import torch
    from safetensors.torch import load_file, save_file

    text = tiny_model("qwen3_5_text")
    text.save_pretrained(tmp_path / "text")
    config = json.loads((tmp_path / "text/config.json").read_text())
    tensors = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(tmp_path / "text/model.safetensors").items()
    }
    tensors["model.visual.blocks.0.attn.proj.weight"] = torch.zeros(4, 4)
    folder = tmp_path / "a"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    whole = {
        "model_type": "qwen3_5",
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "text_config": config,
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    (folder / "config.json").write_text(json.dumps(whole))
    recipe = {"donors": {"a": {"model": "a"}}, "slots": [{"from": "a", "layers": "0-3"}]}
    built = build_in(tmp_path, recipe)
    assert built.plan.target == "hybrid"
    assert "multimodal" in built.plan.reason
    assert_same(load(built.folder), text)


@pytest.mark.parametrize("learned", ["gpt2", "opt", "gptj"])
def test_the_context_ends_where_a_table_of_positions_does(tmp_path: Path, learned: str) -> None:
    """Serving engines take the number at its word, and fail at the first token beyond it."""
    save_donor(tmp_path / "short", learned)
    save_donor(tmp_path / "long", "llama", max_position_embeddings=4096)
    recipe = {
        "donors": {"short": {"model": "short"}, "long": {"model": "long"}},
        "slots": [{"from": "short", "layers": "0-1"}, {"from": "long", "layers": "2-3"}],
        "bridges": UNFITTED,
    }
    for embeddings, head in (("short", "long"), ("long", "short")):
        stack = recipe | {"embeddings": embeddings, "head": head}
        assert (
            "context length 64, the least of its donors' (short 64, long 4,096): 'short' cannot "
            "read beyond its table of positions"
        ) in plan_of(tmp_path, stack).notes
        built = build_in(tmp_path, stack, out=f"out-{embeddings}", check="structure")
        config = json.loads((built.folder / "config.json").read_text())
        assert config["max_position_embeddings"] == 64
        model = load(built.folder)
        assert model.config.max_position_embeddings == 64
        model(torch.zeros(1, 64, dtype=torch.long), use_cache=False)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.zeros(1, 65, dtype=torch.long), use_cache=False)


def test_rotary_donors_alone_have_no_table(tmp_path: Path) -> None:
    for name, length in (("short", 64), ("long", 4096)):
        save_donor(tmp_path / name, "llama", max_position_embeddings=length)
    stack = {
        "donors": {"short": {"model": "short"}, "long": {"model": "long"}},
        "slots": [{"from": "short", "layers": "0-1"}, {"from": "long", "layers": "2-3"}],
        "bridges": UNFITTED,
    }
    plan = plan_of(tmp_path, stack)
    assert plan.positions is None
    assert not [note for note in plan.notes if "context length" in note]


@pytest.mark.parametrize("model", ["~nobody-of-that-name/x", "y" * 5000, "a/" + "y" * 300])
def test_a_name_that_no_folder_can_have_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """pathlib answers each of them with an error of its own."""
    monkeypatch.chdir(tmp_path)
    slots = [{"from": "a", "layer": 0}]
    write_recipe(tmp_path / "x.yaml", {"donors": {"a": {"model": model}}, "slots": slots})
    for arguments in (["plan", "x.yaml"], ["inspect", model], ["verify", model]):
        done = CliRunner().invoke(main, [*arguments, "--offline"])
        assert done.exit_code == 2
        assert isinstance(done.exception, SystemExit)
        assert 20 < len(done.stderr) < 1000
