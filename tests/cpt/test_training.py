"""Training by the command: what is frozen stays, what is killed goes on, what is wrong is said."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hybridize.assembler.assembly.verify import verify
from hybridize.cli import main
from hybridize.cpt import command
from hybridize.cpt.plan.target import find_target
from hybridize.cpt.train.isolation import isolates
from hybridize.cpt.train.trainable_model import open_model
from hybridize.model.checkpoint import open_checkpoint
from tests.support.readers import code, save_reader
from tests.support.stacks import build_in, write_recipe
from tests.support.tiny import FAMILIES
from tests.support.trainings import SMALL, STEPS, broken_off, prepare, tensors, train

RECURRENT = {
    "mamba", "mamba2", "falcon_mamba", "qwen3_next", "qwen3_5_text", "olmo_hybrid", "kimi_linear",
    "bamba", "jamba", "falcon_h1", "nemotron_h", "granitemoehybrid", "lfm2", "recurrent_gemma",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a training that has gone through without a break."""
    recipe = prepare(tmp_path_factory.mktemp("trained"))
    done = train(recipe)
    assert done.exit_code == 0, done.output[-2000:]
    return recipe


def test_what_is_frozen_stays_and_the_rest_learns(trained: Path) -> None:
    before, after = tensors(trained.parent / "out"), tensors(trained.parent / "trained")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        name for name in before if name.startswith(("model.bridges.", "model.layers.0."))
    }
    record = json.loads((trained.parent / "trained" / "hybridize.json").read_text())["training"][0]
    (new, old) = (pair for pair in record["losses"].values())
    assert new["after"] < new["before"] - 0.1
    assert {t["name"] for t in record["stages"][0]["trained"]} == changed
    assert record["packed"]
    assert old["after"] != old["before"]


def test_the_result_is_a_model_like_any_other(trained: Path) -> None:
    folder = trained.parent / "trained"
    assert verify(folder).ok
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert bool(model(torch.arange(8)[None]).logits.isfinite().all())
    card = (folder / "README.md").read_text()
    built, training = card.split("\n## Continued pre-training\n")
    assert "\n## Recipe of the build\n" in built
    assert "| 0 | bridges, shallow: 1 | " in training
    assert "| code (new) | 75% | code.txt |" in training
    assert "| prose (old) | 25% | prose.txt |" in training
    section = yaml.safe_load(training.split("```yaml\n")[1].split("```")[0])["cpt"]
    written = yaml.safe_load(trained.read_text())["cpt"]
    assert {key: section[key] for key in written if key != "data"} == {
        key: value for key, value in written.items() if key != "data"
    }
    assert [text["files"] for text in section["data"]["new"]] == [["code.txt"]]
    assert str(trained.parent) not in card
    assert str(trained.parent) not in (folder / "hybridize.json").read_text()


def test_a_trained_folder_knows_where_its_recipe_lay(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Paths of a recipe mean the same wherever the command is run."""
    monkeypatch.chdir(tmp_path)
    found = find_target(trained.parent / "trained")
    assert found.recipe.path("code.txt").samefile(trained.parent / "code.txt")
    moved = tmp_path / "moved"
    shutil.copytree(trained.parent / "trained", moved)
    assert find_target(moved).recipe.path("code.txt") == Path("code.txt")
    assert not (trained.parent / "trained.work").exists()


def interrupted(recipe: Path, out: str, seconds: float) -> bool:
    """Train in a child that is killed after some seconds; whether it was done by then."""
    folder = recipe.parent
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            options = {"resume": (folder / f"{out}.work").exists(), "force": False}
            command.train(
                recipe,
                built=folder / "out",
                out=folder / out,
                device="cpu",
                offline=True,
                **options,
            )
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return (folder / out).exists() and not (folder / f"{out}.work").exists()


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_goes_on_to_the_same_weights(trained: Path, seed: int) -> None:
    """At any moment, several times over: the bytes are those of a training without a break."""
    chance, out = random.Random(seed), f"killed-{seed}"
    start = time.monotonic()
    assert interrupted(trained, f"whole-{seed}", 60)
    needed = time.monotonic() - start
    kills = 0
    while not interrupted(
        trained, out, chance.uniform(0.1, 0.8 if kills else 0.4) * needed if kills < 5 else 60
    ):
        kills += 1
    assert kills > 0
    assert tensors(trained.parent / out) == tensors(trained.parent / "trained")


def test_a_kill_while_a_checkpoint_is_written_costs_nothing(trained: Path) -> None:
    folder = broken_off(trained, "writing", pattern=".checkpoint-*")
    assert list(folder.glob(".checkpoint-*"))
    done = train(trained, "writing", "--resume")
    assert done.exit_code == 0, done.output[-2000:]
    assert tensors(trained.parent / "writing") == tensors(trained.parent / "trained")


def test_a_broken_checkpoint_is_passed_over(trained: Path) -> None:
    """Half a file, as after a full disk: the one before it is taken."""
    folder = broken_off(trained, "half", checkpoints=2)
    newest = max(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    weights = newest / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    done = train(trained, "half", "--resume")
    assert done.exit_code == 0, done.output[-2000:]
    assert "stage 0 goes on from checkpoint-3\n" in done.stderr
    assert tensors(trained.parent / "half") == tensors(trained.parent / "trained")


def test_moments_exist_for_what_learns_alone(trained: Path) -> None:
    folder = broken_off(trained, "moments")
    checkpoint = next(folder.glob("checkpoint-*"))
    state = load_file(checkpoint / "optimizer.safetensors")
    headers = open_checkpoint(trained.parent / "out").tensors
    learns = [n for n in headers if n.startswith(("model.bridges.", "model.layers.0."))]
    assert {key.rpartition("/")[0] for key in state} == set(learns)
    assert all(state[f"{name}/exp_avg"].shape == headers[name].shape for name in learns)
    shutil.rmtree(folder.parent)


def test_another_training_is_not_gone_on_with(trained: Path) -> None:
    broken_off(trained, "other")
    changed = trained.parent / "changed.yaml"
    changed.write_text(trained.read_text().replace("shallow: 1", "shallow: 2"))
    again = train(changed, "other")
    assert again.exit_code == 2
    assert "an interrupted training is here" in again.stderr
    resumed = train(changed, "other", "--resume")
    assert resumed.exit_code == 1
    assert "another freeze plan in stage 0" in resumed.stderr
    assert "only this run trains:\n    slot 1: 9 tensors" in resumed.stderr
    assert not (trained.parent / "other").exists()
    forced = train(changed, "other", "--force")
    assert forced.exit_code == 0, forced.output[-2000:]


def test_there_must_be_a_training_to_resume(trained: Path) -> None:
    done = train(trained, "never", "--resume")
    assert done.exit_code == 2
    assert "there is no training to resume" in done.stderr
    assert not (trained.parent / "never.work").exists()


def test_a_finished_stage_is_not_taken_for_another_training(trained: Path) -> None:
    """Killed behind its last step, before its result was written; then the recipe changes."""
    folder = broken_off(trained, "finished", pattern="done.safetensors")
    assert (folder / "done.safetensors").is_file()
    if (trained.parent / "finished").exists():
        shutil.rmtree(trained.parent / "finished")
    changed = trained.parent / "slower.yaml"
    changed.write_text(trained.read_text().replace("replay: 0.25", "replay: 0.5"))
    refused = train(changed, "finished", "--resume")
    assert refused.exit_code == 1
    assert "other text: the share of 'code' was another one" in refused.stderr
    done = train(trained, "finished", "--resume")
    assert done.exit_code == 0, done.output[-2000:]
    assert tensors(trained.parent / "finished") == tensors(trained.parent / "trained")


def test_nothing_of_others_is_removed(trained: Path) -> None:
    work = trained.parent / "others.work"
    work.mkdir()
    (work / "thesis.txt").write_text("precious")
    assert "hybridize did not make it" in train(trained, "others", "--force").stderr
    assert "exclude each other" in train(trained, "others", "--force", "--resume").stderr
    assert (work / "thesis.txt").read_text() == "precious"


def test_a_mistake_in_the_text_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    recipe = prepare(tmp_path)
    (tmp_path / "code.txt").write_text(" ")
    assert train(recipe).exit_code == 2
    (tmp_path / "code.txt").write_text(code())
    assert train(recipe).exit_code == 0


WILD: dict[str, Any] = {
    "learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_ratio": 0.0, "schedule": "constant",
}  # fmt: skip


def test_a_last_step_that_diverges_writes_nothing(tmp_path: Path) -> None:
    done = train(prepare(tmp_path, tokens=128, **WILD))
    assert done.exit_code == 1
    assert "no number" in done.stderr or "not finite" in done.stderr
    assert not (tmp_path / "trained").exists()


def test_stages_follow_each_other(tmp_path: Path) -> None:
    stages = [
        {"train": ["bridges"], "share": 0.5},
        {"train": ["bridges", {"shallow": 1}], "share": 0.5},
    ]
    recipe = prepare(tmp_path, stages=stages, schedule="wsd", learning_rates={"bridge": 1e-2})
    done = train(recipe, "trained", "--json")
    assert done.exit_code == 0, done.output[-2000:]
    record = json.loads(done.stdout)
    assert [len(stage["trained"]) for stage in record["stages"]] == [1, 10]
    assert [stage["steps"] for stage in record["stages"]] == [20, 20]


def test_what_an_earlier_stage_trained_may_be_frozen_in_a_later_one(tmp_path: Path) -> None:
    stages = [{"train": ["bridges"], "share": 0.5}, {"train": [{"shallow": 1}], "share": 0.5}]
    recipe = prepare(tmp_path, stages=stages)
    done = train(recipe)
    assert done.exit_code == 0, done.output[-2000:]
    before, after = tensors(tmp_path / "out"), tensors(tmp_path / "trained")
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if name.startswith(("model.bridges.", "model.layers.0."))
    }


@pytest.mark.parametrize("first", ["bridges", "embeddings"])
def test_sixteen_bits_learn_in_fp32_and_are_stored_in_sixteen(tmp_path: Path, first: str) -> None:
    recipe = prepare(tmp_path, train=[first, {"shallow": 1}])
    recipe.write_text(recipe.read_text() + "dtype: bfloat16\n")
    import yaml

    shutil.rmtree(tmp_path / "out")
    build_in(tmp_path, yaml.safe_load(recipe.read_text()))
    done = train(recipe)
    assert done.exit_code == 0, done.output[-2000:]
    before, after = (open_checkpoint(tmp_path / name).tensors for name in ("out", "trained"))
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    hashes = tensors(tmp_path / "out"), tensors(tmp_path / "trained")
    changed = {name for name in hashes[0] if hashes[0][name] != hashes[1][name]}
    assert changed
    learns = ("model.bridges.", "model.embed_tokens.", "model.layers.0.")
    assert all(name.startswith(learns) for name in changed)


@pytest.mark.gpu
def test_a_gpu_trains_as_a_processor_does(tmp_path: Path) -> None:
    """In 16 bits, with accumulation and checkpointing."""
    recipe = prepare(
        tmp_path, gradient_checkpointing=True, micro_batch_size=2, train=["bridges", {"shallow": 1}]
    )
    import yaml

    data = yaml.safe_load(recipe.read_text()) | {"dtype": "bfloat16"}
    shutil.rmtree(tmp_path / "out")
    build_in(tmp_path, data)
    write_recipe(recipe, data)
    records = []
    for device in ("cuda", "cpu"):
        done = train(recipe, device, "--device", device, "--json")
        assert done.exit_code == 0, done.output[-2000:]
        records.append(json.loads(done.stdout))
    for name, pair in records[0]["losses"].items():
        assert pair["before"] == pytest.approx(records[1]["losses"][name]["before"], abs=2e-2)
        assert pair["after"] == pytest.approx(records[1]["losses"][name]["after"], abs=5e-2)
    before, after = tensors(tmp_path / "out"), tensors(tmp_path / "cuda")
    learns = ("model.bridges.", "model.layers.0.")
    assert all(name.startswith(learns) for name in before if before[name] != after[name])


@pytest.mark.parametrize(
    ("model_type", "apart"),
    [("llama", True), ("qwen3", True), ("mamba2", False), ("olmo_hybrid", False), ("jamba", False)],
)
def test_packed_documents_are_told_apart_or_not_packed(
    tmp_path: Path, model_type: str, apart: bool
) -> None:
    save_reader(tmp_path / "only", model_type)
    recipe = {
        "donors": {"only": {"model": "only"}},
        "slots": [{"from": "only", "layers": "0-3"}],
        "target": "hybrid",
    }
    build_in(tmp_path, recipe)
    for folder in ("only", "out"):
        assert isolates(open_model(tmp_path / folder, "cpu"), 32) is apart


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=[] if name in ("gpt2", "olmo_hybrid") else [pytest.mark.slow])
        for name in FAMILIES
    ],
)
def test_every_family_trains(tmp_path: Path, model_type: str) -> None:
    """Packed where no layer is recurrent; and what is frozen stays."""
    save_reader(tmp_path / "only", model_type)
    (tmp_path / "code.txt").write_text(code()[:6000])
    data = {
        "donors": {"only": {"model": "only"}},
        "slots": [{"from": "only", "layers": "0-3"}],
        "target": "hybrid",
        "cpt": {**SMALL, "train": [{"shallow": 1}], "data": {"new": ["code.txt"]}, "tokens": 512},
    }
    build_in(tmp_path, data)
    done = train(write_recipe(tmp_path / "recipe.yaml", data), "trained", "--json")
    assert done.exit_code == 0, done.output[-2000:]
    before, after = tensors(tmp_path / "out"), tensors(tmp_path / "trained")
    assert all(name.startswith("model.layers.0.") for name in before if before[name] != after[name])
    assert json.loads(done.stdout)["packed"] is (model_type not in RECURRENT)


def test_a_loss_that_is_no_number_stops_with_a_message(tmp_path: Path) -> None:
    recipe = prepare(tmp_path, **WILD)
    done = train(recipe)
    assert done.exit_code == 1
    assert "the loss is nan in step 2" in done.stderr
    assert "checkpoint-1 holds what was learnt before" in done.stderr
    assert (tmp_path / "trained.work" / "stage-0" / "checkpoint-1" / "checkpoint.json").is_file()
    assert "Traceback" not in done.output
    assert not (tmp_path / "trained").exists()


@pytest.mark.parametrize(
    ("cpt", "found"),
    [
        ({"data": {"new": ["nowhere.txt"]}}, "nowhere.txt"),
        ({"data": {"new": ["empty.txt"]}}, "empty.txt"),
        ({"data": None}, "the recipe names no text to train on"),
        ({"length": 4096}, "rows of 4096 tokens are longer than high reads: 64"),
        ({"train": [{"shallow": 1.5}]}, "1.5 is neither"),
        ({"train": ["bridgse"]}, "did you mean 'bridges'?"),
        ({"train": [{"patterns": ["model.nothing.*"]}]}, "model.nothing.*"),
        ({"stages": [{"train": ["bridges"], "share": 0.5}]}, "add up to 0.5"),
        ({"data": {"nwe": ["code.txt"]}}, "did you mean 'new'?"),
    ],
)
def test_what_is_wrong_is_said_before_a_weight_is_read(
    tmp_path: Path, cpt: dict[str, Any], found: str
) -> None:
    recipe = prepare(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    data = {**SMALL, **cpt}
    import yaml

    whole = yaml.safe_load(recipe.read_text()) | {"cpt": {k: v for k, v in data.items() if v}}
    shutil.move(tmp_path / "out" / "model.safetensors", tmp_path / "kept")
    (tmp_path / "out" / "model.safetensors").write_bytes((tmp_path / "kept").read_bytes())
    done = train(write_recipe(recipe, whole))
    assert done.exit_code == 2
    assert found in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "trained.work").exists()


def test_a_forecast_reads_headers_alone(trained: Path) -> None:
    arguments = ["cpt", str(trained), "--built", str(trained.parent / "out"), "--forecast"]
    arguments += ["--no-time"]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0
    assert "all, FLOPs" in shown.output
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    (stage,) = found["stages"]
    assert stage["steps"] == STEPS
    assert 0 < stage["costs"]["flops_ratio"] < 1
