"""What a build writes is what the plan says, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hybridize.assembler.assembly import assemble, copying
from hybridize.assembler.assembly.assemble import build
from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.worker.worker import LocalWorker, WorkerProcess
from hybridize.errors import HybridizeError
from hybridize.files import staging
from hybridize.model.checkpoint import open_checkpoint
from tests.support.stacks import (
    UNFITTED,
    assert_same,
    build_in,
    load,
    plan_of,
    save_donor,
    tokens,
    write_recipe,
)
from tests.support.tiny import tiny_model

STACK = {
    "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
    "slots": [{"from": "a", "layers": "0-2"}, {"from": "b", "layers": [1, 1, 3]}],
    "bridges": UNFITTED,
}
HYBRID = STACK | {"target": "hybrid"}


@pytest.fixture
def donors(tmp_path: Path) -> Path:
    save_donor(tmp_path / "a", "llama")
    save_donor(tmp_path / "b", "llama", seed=1)
    return tmp_path


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith((".", "out"))]


@pytest.mark.parametrize("target", ["native", "hybrid"])
def test_every_tensor_is_its_donors_bit_for_bit(donors: Path, target: str) -> None:
    built = build_in(donors, STACK | {"target": target})
    a, b = load_file(donors / "a/model.safetensors"), load_file(donors / "b/model.safetensors")
    got = load_file(built.folder / "model.safetensors")
    expected = {"model.embed_tokens.weight": a["model.embed_tokens.weight"]}
    expected |= {name: b[name] for name in ("model.norm.weight", "lm_head.weight")}
    for i, (donor, j) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 1), (b, 3)]):
        prefix = f"model.layers.{j}."
        expected |= {
            f"model.layers.{i}.{name.removeprefix(prefix)}": tensor
            for name, tensor in donor.items()
            if name.startswith(prefix)
        }
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_native_and_hybrid_targets_are_the_same_function(donors: Path) -> None:
    native = build_in(donors, STACK, "native")
    hybrid = build_in(donors, HYBRID, "hybrid")
    assert (native.plan.target, hybrid.plan.target) == ("native", "hybrid")
    assert_same(load(native.folder), load(hybrid.folder))


def test_results_load_in_a_process_without_hybridize(donors: Path) -> None:
    """A model is published for people who do not have the tool."""
    build_in(donors, STACK, "native")
    build_in(donors, HYBRID, "hybrid")
    code = """
import sys, torch
sys.path = [p for p in sys.path if p]
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hybridize":
            raise ImportError("hybridize is not installed here")
sys.meta_path.insert(0, Refuse())
from transformers import AutoModelForCausalLM
native = AutoModelForCausalLM.from_pretrained("native")
hybrid = AutoModelForCausalLM.from_pretrained("hybrid", trust_remote_code=True)
assert type(native).__module__.startswith("transformers.models.llama"), type(native)
assert type(hybrid).__module__.startswith("transformers_modules"), type(hybrid)
ids = torch.arange(3, 15)[None]
assert torch.equal(native(ids).logits, hybrid(ids).logits)
hybrid.save_pretrained("again")  # all of its code goes along
again = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
assert torch.equal(again(ids).logits, hybrid(ids).logits)
print("same")
"""
    env = os.environ | {
        "HF_HOME": str(donors / "home"),
        "HF_MODULES_CACHE": str(donors / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=donors,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr
    code_of = {file.name for file in (donors / "hybrid").glob("*.py")}
    assert {file.name for file in (donors / "again").glob("*.py")} == code_of


def test_shards_hold_at_most_the_size_asked_for(donors: Path) -> None:
    built = build_in(donors, STACK | {"shard_size": "20KB"})
    files = sorted(built.folder.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(file.stat().st_size < 25_000 for file in files)
    whole = build_in(donors, STACK, "whole")
    assert_same(load(built.folder), load(whole.folder))


def test_what_is_stored_wider_than_the_rest_stays_so(tmp_path: Path) -> None:
    """mergekit casts A_log and D of Mamba2, too."""
    model = tiny_model("mamba2")
    wide = {n for n, _ in model.named_parameters() if n.endswith(("A_log", ".D"))}
    assert wide
    model.to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name in wide:
            parameter.data = parameter.data.float()
    model.save_pretrained(tmp_path / "a")
    for target in ("native", "hybrid"):
        recipe = {
            "donors": {"a": {"model": "a"}},
            "slots": [{"from": "a", "layers": "0-1"}],
            "dtype": "float16",
            "target": target,
        }
        built = build_in(tmp_path, recipe, f"out-{target}")
        kinds = {
            t.name.split(".")[-1]: t.dtype for t in open_checkpoint(built.folder).tensors.values()
        }
        assert (kinds["A_log"], kinds["D"], kinds["weight"]) == ("F32", "F32", "F16")


@pytest.mark.parametrize("target", ["native", "hybrid"])
def test_a_cast_is_torchs_own(donors: Path, target: str) -> None:
    built = build_in(donors, STACK | {"dtype": "bfloat16", "target": target})
    full = load_file(build_in(donors, STACK, "full").folder / "model.safetensors")
    half = load_file(built.folder / "model.safetensors")
    assert all(torch.equal(half[name], full[name].bfloat16()) for name in full)
    assert load(built.folder).dtype == torch.bfloat16
    assert verify(built.folder, worker=LocalWorker()).ok


def test_donors_of_differing_dtype_meet_without_loss(tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "a")
    save_donor(tmp_path / "b", "llama", seed=1)
    built = build_in(tmp_path, STACK)
    got, half = (load_file(f / "model.safetensors") for f in (built.folder, tmp_path / "a"))
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    name = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(got[name], half[name].float())
    assert load(built.folder).dtype == torch.float32


def test_values_beyond_float16_are_an_error(tmp_path: Path) -> None:
    """A silent infinity would be found by nobody but the user of the model."""
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "a")
    recipe = {
        "donors": {"a": {"model": "a"}},
        "slots": [{"from": "a", "layer": 0}],
        "dtype": "float16",
    }
    with pytest.raises(
        HybridizeError, match=r"'model.layers.0.mlp.up_proj.weight' has values beyond"
    ):
        build_in(tmp_path, recipe)
    assert left_over(tmp_path) == []


def test_numbers_that_are_not_finite_stop_the_build(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "a")
    recipe = {"donors": {"a": {"model": "a"}}, "slots": [{"from": "a", "layers": "0-1"}]}
    with pytest.raises(HybridizeError, match="not finite") as caught:
        build_in(tmp_path, recipe)
    assert caught.value.exit_status == 1
    assert left_over(tmp_path) == []
    build_in(tmp_path, recipe, check="structure")


def test_a_refuted_proof_falls_back_to_a_hybrid_or_stops(donors: Path) -> None:
    """What two configs leave out has defaults, and those may differ from what one spells out."""
    file = donors / "a/config.json"
    config = json.loads(file.read_text())
    config["rms_norm_eps"] = 0.5
    file.write_text(json.dumps(config))
    other = donors / "b/config.json"
    config = json.loads(other.read_text())
    del config["rms_norm_eps"]
    other.write_text(json.dumps(config))
    assert plan_of(donors, STACK).target == "native"
    built = build_in(donors, STACK)
    assert built.plan.target == "hybrid"
    assert "rms_norm_eps" in built.plan.reason
    assert built.num_tensors == len(open_checkpoint(built.folder).tensors)
    with pytest.raises(HybridizeError, match="rms_norm_eps"):
        build_in(donors, STACK | {"target": "native"}, "out2")
    assert left_over(donors) == ["out"]


def test_an_existing_target_is_left_alone(donors: Path) -> None:
    (donors / "out").mkdir()
    (donors / "out/thesis.txt").write_text("mine")
    with pytest.raises(HybridizeError, match="the target exists"):
        build_in(donors, STACK)
    with pytest.raises(HybridizeError, match="hybridize did not make it"):
        build_in(donors, STACK, force=True)
    assert (donors / "out/thesis.txt").read_text() == "mine"


def test_force_replaces_what_hybridize_made(donors: Path) -> None:
    build_in(donors, STACK)
    built = build_in(donors, HYBRID, force=True)
    assert load(built.folder).config.model_type == "hybridize"
    assert left_over(donors) == ["out"]


def test_a_disk_that_is_too_small_is_found_before(
    donors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(HybridizeError, match="the disk has 1 kB free, the result needs"):
        build_in(donors, STACK)
    assert left_over(donors) == []


@pytest.mark.parametrize("after", [0, 3, 40])
def test_a_disk_that_fills_up_leaves_nothing(
    donors: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    written = 0
    pwrite = os.pwrite

    def full(*args: Any) -> int:
        nonlocal written
        written += 1
        if written > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*args)

    monkeypatch.setattr(copying.os, "pwrite", full)
    with pytest.raises(HybridizeError, match="the disk is full"):
        build_in(donors, STACK)
    assert left_over(donors) == []


def test_a_real_limit_on_files_is_a_full_disk(donors: Path) -> None:
    """The command itself, under a limit of the system's."""
    write_recipe(donors / "recipe.yaml", STACK)
    code = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
sys.argv = ["hybridize", "build", "recipe.yaml"]
runpy.run_module("hybridize", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=donors, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "the disk is full: File too large" in done.stderr
    assert list((donors / "out").iterdir()) == []


def test_trouble_in_the_second_process_is_told_by_the_first(tmp_path: Path) -> None:
    with closing(WorkerProcess()) as worker:
        with pytest.raises(FileNotFoundError, match="absent"):
            worker.submit(
                "compute", file=str(tmp_path / "absent"), outputs=[], bridges={}, fitted=None
            ).result()
        with pytest.raises(HybridizeError, match=r"config\.json is missing"):
            worker.submit("check", folder=str(tmp_path), mode="structure").result()
        with pytest.raises(HybridizeError, match=r"(?s)ended with status 1 at 'check'.*TypeError"):
            worker.submit("check").result()


def test_a_donor_that_shrinks_meanwhile_is_named(donors: Path) -> None:
    plan = plan_of(donors, STACK)
    file = donors / "b/model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(HybridizeError, match="the file became shorter") as caught:
        build(plan, donors / "out", worker=LocalWorker())
    assert str(file) in str(caught.value)
    assert left_over(donors) == []


def test_an_interrupted_build_goes_on_with_its_finished_files(
    donors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = STACK | {"shard_size": "20KB"}
    copy, seen = assemble.copy_outputs, []

    def interrupt(shard: Any, *rest: Any) -> Any:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(shard.name)
        return copy(shard, *rest)

    monkeypatch.setattr(assemble, "copy_outputs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_in(donors, recipe)
    monkeypatch.setattr(assemble, "copy_outputs", copy)
    assert left_over(donors) == [".out.staging"]
    damaged = donors / ".out.staging/model" / seen[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    built = build_in(donors, recipe)
    assert built.resumed == 2
    assert left_over(donors) == ["out"]
    assert_same(load(built.folder), load(build_in(donors, STACK, "whole").folder))


def test_another_plan_does_not_go_on_with_an_interrupted_one(
    donors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    recipe = STACK | {"shard_size": "20KB"}
    with monkeypatch.context() as patch:
        patch.setattr(assemble._Job, "check", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_in(donors, recipe)
    save_donor(donors / "b", "llama", seed=2)
    built = build_in(donors, recipe)
    assert built.resumed == 0
    assert verify(built.folder, whole=True, worker=LocalWorker()).ok


def test_two_builds_of_one_target_do_not_meet(donors: Path) -> None:
    from hybridize.files.staging import Staging

    with Staging(donors / "out"), pytest.raises(HybridizeError, match="another build"):
        build_in(donors, STACK)


def test_layouts_of_old_and_new_checkpoints_give_one_model(tmp_path: Path) -> None:
    """With a base model's prefix or without, experts one by one or fused, in one file or many."""
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "old")
    model.save_pretrained(tmp_path / "new", save_original_format=False, max_shard_size="20KB")
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 1
    names = [set(open_checkpoint(tmp_path / kind).tensors) for kind in ("old", "new")]
    assert names[0] != names[1]
    for target in ("native", "hybrid"):
        recipe = {
            "donors": {"a": {"model": "old"}, "b": {"model": "new"}},
            "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
            "target": target,
        }
        assert_same(load(build_in(tmp_path, recipe, target).folder), load(tmp_path / "old"))


def test_a_base_models_checkpoint_can_give_layers(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "whole")
    model.transformer.save_pretrained(tmp_path / "base")
    recipe = {
        "donors": {"a": {"model": "base"}, "b": {"model": "whole"}},
        "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
    }
    for target in ("native", "hybrid"):
        built = build_in(tmp_path, recipe | {"target": target}, target)
        assert_same(load(built.folder), load(tmp_path / "whole"))


def test_untied_embeddings_with_the_head_of_a_tied_donor(tmp_path: Path) -> None:
    save_donor(tmp_path / "a", "llama")
    save_donor(tmp_path / "b", "llama", seed=1, tie_word_embeddings=True)
    for target in ("native", "hybrid"):
        built = build_in(tmp_path, STACK | {"target": target}, target)
        got, b = load(built.folder), load(tmp_path / "b")
        assert torch.equal(got.lm_head.weight, b.model.embed_tokens.weight)
        assert got.lm_head.weight is not got.get_input_embeddings().weight
        assert not got.config.tie_word_embeddings


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    save_donor(tmp_path / "a", "llama", tie_word_embeddings=True)
    recipe = {"donors": {"a": {"model": "a"}}, "slots": [{"from": "a", "layers": "1-2"}]}
    for target in ("native", "hybrid"):
        built = build_in(tmp_path, recipe | {"target": target}, target)
        assert "lm_head.weight" not in open_checkpoint(built.folder).tensors
        got = load(built.folder)
        assert got.get_output_embeddings().weight is got.get_input_embeddings().weight


def test_provenance_says_where_every_tensor_came_from(donors: Path) -> None:
    (donors / "a/README.md").write_text("---\nlicense: mit\n---\n# a\n")
    built = build_in(donors, STACK | {"name": "mine"})
    manifest = json.loads((built.folder / "hybridize.json").read_text())
    tensor = manifest["tensors"]["model.layers.4.mlp.up_proj.weight"]
    assert (tensor["donor"], tensor["from"]) == ("b", ["model.layers.1.mlp.up_proj.weight"])
    assert manifest["donors"]["a"]["license"] == "mit"
    assert manifest["donors"]["b"]["license"] is None
    assert manifest["recipe"]["text"] == (donors / "recipe.yaml").read_text()
    assert str(donors) not in (built.folder / "hybridize.json").read_text()
    card = (built.folder / "README.md").read_text()
    assert "| 0-2 | a | 0-2 |" in card
    assert str(donors) not in card
    assert "license:" not in card.split("---")[1]


def test_small_files_come_along(donors: Path) -> None:
    (donors / "a/tokenizer.json").write_text("{}")
    (donors / "a/chat_template.jinja").write_text("x")
    (donors / "a/pytorch_model.bin").write_text("x")
    names = {path.name for path in build_in(donors, STACK).folder.iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "hybridize.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip


def test_bridges_start_as_the_recipe_says(tmp_path: Path) -> None:
    save_donor(tmp_path / "a", "llama")
    save_donor(tmp_path / "b", "llama", hidden_size=48)
    slots = [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "0-1"}]
    donors: dict[str, Any] = {"a": {"model": "a"}, "b": {"model": "b"}}
    recipe = {"donors": donors, "slots": slots, "head": "a"}
    weights = {}
    for seed, init in ((0, "identity"), (0, "random"), (1, "random")):
        text = recipe | {"bridges": {"init": init, "seed": seed, "norm": True, "bias": True}}
        built = build_in(tmp_path, text, f"{init}{seed}")
        weights[init, seed] = load_file(built.folder / "model.safetensors")
        logits = load(built.folder)(tokens()[0]).logits
        assert logits.isfinite().all()
    up, down = "model.bridges.2.proj.weight", "model.bridges.head.proj.weight"
    assert torch.equal(weights["identity", 0][up], torch.eye(48, 32))
    assert torch.equal(weights["identity", 0]["model.bridges.2.norm.weight"], torch.ones(32))
    assert torch.equal(weights["identity", 0]["model.bridges.2.proj.bias"], torch.zeros(48))
    random = weights["random", 0][up]
    torch.testing.assert_close(random.T @ random, torch.eye(32))
    assert not torch.equal(random, weights["random", 1][up])
    assert not torch.equal(random, weights["random", 0][down].T)


def test_an_identity_bridge_changes_nothing(donors: Path) -> None:
    plain = build_in(donors, HYBRID, "plain")
    for kind in ("identity", "linear"):
        bridges = {"kind": kind, "init": "identity", "where": "changes"}
        built = build_in(donors, HYBRID | {"bridges": bridges}, kind)
        assert "3" in built.plan.bridges
        ids, _ = tokens()
        torch.testing.assert_close(load(built.folder)(ids).logits, load(plain.folder)(ids).logits)
