"""What a recipe or the command line may ask of a training beyond its policy, and what it tells."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hybridize.assembler.assembly.verify import verify
from hybridize.cli import main
from hybridize.cpt.data.prefix import Prefix
from hybridize.cpt.plan import saving
from hybridize.cpt.plan.model_tensors import read_model_tensors
from hybridize.cpt.plan.planning import CptPlan, plan_training
from hybridize.cpt.plan.saving import SaveClock
from hybridize.cpt.state import checkpoints
from hybridize.cpt.state.checkpoints import mean
from hybridize.cpt.state.metrics import forget
from hybridize.cpt.train import guards
from hybridize.cpt.train.guards import Guards
from hybridize.errors import CheckFailed
from hybridize.model.manifest import sealed
from hybridize.recipe.file import load_recipe
from hybridize.recipe.sections.cpt import CptSpec, GuardsSpec
from tests.support.readers import code, prose, save_reader
from tests.support.stacks import build_in, write_recipe
from tests.support.trainings import (
    DATA,
    SMALL,
    broken_off,
    changed,
    ended,
    lines,
    prepare,
    tensors,
    train,
)

SHORT: dict[str, Any] = {"tokens": 8 * 4 * 32, "save_every": 2}  # eight steps


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a model that is there; tests train it under recipes of their own."""
    return prepare(tmp_path_factory.mktemp("options"), **SHORT)


# ---- Memory and time ---------------------------------------------------------------------------


def test_accumulation_is_the_same_training(built: Path) -> None:
    ended(changed(built), "whole")
    ended(changed(built, micro_batch_size=1), "accumulated")
    for one, other in zip(
        lines(built.parent / "whole"), lines(built.parent / "accumulated"), strict=True
    ):
        for key in one.keys() - {"tokens_per_second"}:
            assert one[key] == pytest.approx(other[key], abs=1e-4)


def test_checkpointing_is_the_same_training(built: Path) -> None:
    ended(changed(built, gradient_checkpointing=False), "kept")
    ended(changed(built, gradient_checkpointing=True), "again")
    assert tensors(built.parent / "kept") == tensors(built.parent / "again")


def test_a_cached_prefix_is_the_same_training(built: Path) -> None:
    """Where rows come more than once; and the cache goes when the stage is done."""
    bridges = {"train": ["bridges"], "tokens": 24 * 4 * 32}
    plain = ended(changed(built, cache_prefix=False, **bridges), "ran")
    kept = ended(changed(built, cache_prefix=True, **bridges), "kept-prefix")
    for name, pair in plain["losses"].items():
        assert kept["losses"][name]["after"] == pytest.approx(pair["after"], abs=1e-4)
    assert kept["losses"]["code (new)"]["after"] < kept["losses"]["code (new)"]["before"] - 0.01


def test_a_cached_prefix_goes_on_to_the_same_bytes(built: Path) -> None:
    recipe = changed(built, train=["bridges"], cache_prefix=True, tokens=40 * 4 * 32, save_every=3)
    ended(recipe, "prefix-whole")
    broken_off(recipe, "prefix-killed")
    assert list((built.parent / "prefix-killed.work" / "stage-0").glob("prefix*"))
    assert train(recipe, "prefix-killed", "--resume").exit_code == 0
    assert tensors(built.parent / "prefix-killed") == tensors(built.parent / "prefix-whole")


def test_a_block_of_a_prefix_that_was_cut_short_is_run_again(tmp_path: Path) -> None:
    order = np.array([[0, 1], [1, 0], [0, 1], [0, 3], [1, 2]])
    states = {tuple(row): torch.randn(4, 3).bfloat16() for row in order.tolist()}
    calls = []

    def below(rows: Any) -> torch.Tensor:
        calls.append(len(rows))
        return torch.stack([states[tuple(row)] for row in rows.tolist()])

    for _ in range(2):
        prefix = Prefix(tmp_path / "prefix", order)
        prefix.fill(below, 2, lambda done, total: None)
        assert all(torch.equal(prefix[row], value) for row, value in states.items())
    assert calls == [1, 2, 2, 1]  # the first of each time tells the width
    content = bytearray((tmp_path / "prefix").read_bytes())
    content[30] ^= 1
    (tmp_path / "prefix").write_bytes(content)
    prefix = Prefix(tmp_path / "prefix", order)
    prefix.fill(below, 2, lambda done, total: None)
    assert calls[4:] == [1, 2]
    assert all(torch.equal(prefix[row], value) for row, value in states.items())


@pytest.mark.slow
def test_compiled_slots_train(built: Path) -> None:
    plain = ended(changed(built), "not-compiled")
    compiled = ended(changed(built, compile=True), "compiled")
    for name, pair in plain["losses"].items():
        assert compiled["losses"][name]["after"] == pytest.approx(pair["after"], abs=1e-3)


# ---- What comes of it --------------------------------------------------------------------------


def test_the_mean_of_the_last_checkpoints_is_the_result(built: Path) -> None:
    recipe = changed(built, average=3, schedule="constant", tokens=9 * 4 * 32)
    record = ended(recipe, "averaged")
    (stage,) = record["stages"]
    assert stage["averaged"] == [6, 8, 9]
    assert stage["losses_of_last"].keys() == record["losses"].keys()
    assert stage["losses_of_last"]["code (new)"] != record["losses"]["code (new)"]["after"]
    shown = train(recipe, "averaged-again").stdout
    assert "the mean of 3 checkpoints, of steps 6, 8, 9; the last alone: code (new)" in shown


def test_a_stage_hands_on_what_it_has_learnt_in_fp32(tmp_path: Path) -> None:
    """What is measured and written is rounded to 16 bits; what the next one begins with is not."""
    stages = [{"train": ["bridges"], "share": 0.5}, {"train": ["bridges"], "share": 0.5}]
    recipe = prepare(tmp_path, stages=stages, **SHORT)
    data = yaml.safe_load(recipe.read_text()) | {"dtype": "bfloat16"}
    shutil.rmtree(tmp_path / "out")
    build_in(tmp_path, data)
    write_recipe(recipe, data)
    folder = broken_off(recipe, "handed-on", pattern="done.json")
    (value,) = load_file(folder / "done.safetensors").values()
    assert value.dtype == torch.float32
    assert not torch.equal(value, value.bfloat16().float())
    done = train(recipe, "handed-on", "--resume")
    assert done.exit_code == 0, done.output[-2000:]
    ended(recipe, "whole")
    assert tensors(tmp_path / "handed-on") == tensors(tmp_path / "whole")


def test_a_stage_that_was_damaged_is_not_taken_up(built: Path) -> None:
    stages = [{"train": ["bridges"], "share": 0.5}, {"train": ["norms"], "share": 0.5}]
    recipe = changed(built, stages=stages, tokens=24 * 4 * 32)
    folder = broken_off(recipe, "damaged", pattern="done.json")
    content = bytearray((folder / "done.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "done.safetensors").write_bytes(content)
    done = train(recipe, "damaged", "--resume")
    assert done.exit_code == 1
    assert "what this stage has trained is not what was written" in done.stderr


def test_a_mistake_at_resume_costs_nothing(built: Path) -> None:
    """Text that is not there any more, before the first checkpoint: what was begun stays."""
    recipe = changed(built, tokens=400 * 4 * 32, save_every=400)
    folder = broken_off(recipe, "early-kill", pattern="../start.json")
    text = built.parent / "code.txt"
    kept = text.read_text()
    text.write_text(kept + "more = 1")
    try:
        done = train(recipe, "early-kill", "--resume")
    finally:
        text.write_text(kept)
    assert done.exit_code == 1
    assert "other text" in done.stderr
    assert (folder.parent / "start.json").is_file()


def test_the_mean_goes_by_the_checkpoints_that_the_recipe_asks_for(built: Path) -> None:
    recipe = changed(built, average=2, tokens=40 * 4 * 32, save_every=10)
    broken_off(recipe, "mean-of-others")
    other = changed(built, average=2, tokens=40 * 4 * 32, save_every=5)
    done = train(other, "mean-of-others", "--resume")
    assert done.exit_code == 1
    assert "save_every was 10, in this run it is 5" in done.stderr


def test_a_mean_is_that_of_its_tensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    values = [torch.randn(5) for _ in range(3)]
    for i, value in enumerate(values[:2]):
        save_file({"x": value}, tmp_path / f"{i}.safetensors")
    files = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    found = mean(files, {"x": values[2]})["x"]
    torch.testing.assert_close(found, torch.stack(values).double().mean(0).float(), rtol=0, atol=0)


def test_experts_of_a_native_mixture_learn_and_lie_as_they_did(tmp_path: Path) -> None:
    """On disk one by one, in memory as one tensor."""
    save_reader(tmp_path / "only", "mixtral")
    (tmp_path / "code.txt").write_text(code()[:6000])
    data = {
        "donors": {"only": {"model": "only"}},
        "slots": [{"from": "only", "layers": "0-3"}],
        "target": "native",
        "cpt": {**SMALL, "train": [{"shallow": 1}], "data": {"new": ["code.txt"]}, "tokens": 512},
    }
    build_in(tmp_path, data)
    recipe = write_recipe(tmp_path / "recipe.yaml", data)
    ended(recipe)
    before, after = tensors(tmp_path / "out"), tensors(tmp_path / "trained")
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {name for name in before if name.startswith("model.layers.0.")}
    assert any(".experts.3." in name for name in moved)
    assert verify(tmp_path / "trained").ok
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    assert type(model).__name__ == "MixtralForCausalLM"
    one = changed(recipe, train=[{"patterns": ["model.layers.0.*.experts.0.w1.weight"]}])
    refused = train(one, "one-expert")
    assert refused.exit_code == 2
    assert "in memory the two are one tensor" in refused.stderr
    assert not (tmp_path / "one-expert.work").exists()


def test_a_tied_head_that_lies_in_the_files_twice_stays_tied(tmp_path: Path) -> None:
    """Some folders hold the matrix of a tied head as well: both copies learn."""
    from safetensors.torch import save_file

    save_reader(tmp_path / "only", "llama", tie_word_embeddings=True)
    (tmp_path / "code.txt").write_text(code()[:6000])
    data = {
        "donors": {"only": {"model": "only"}},
        "slots": [{"from": "only", "layers": "0-3"}],
        "cpt": {**SMALL, "train": ["embeddings"], "data": {"new": ["code.txt"]}, "tokens": 512},
    }
    build_in(tmp_path, data)
    file = tmp_path / "out" / "model.safetensors"
    state = load_file(file)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, file, metadata={"format": "pt"})
    manifest = json.loads((tmp_path / "out" / "hybridize.json").read_text())
    entry = manifest["tensors"]["model.embed_tokens.weight"]
    manifest["tensors"]["lm_head.weight"] = {**entry}
    (tmp_path / "out" / "hybridize.json").write_text(sealed(manifest))
    ended(write_recipe(tmp_path / "recipe.yaml", data))
    after = load_file(tmp_path / "trained" / "model.safetensors")
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], state["lm_head.weight"])
    state["lm_head.weight"][0, 0] += 1  # transformers ties only what is equal: now there are two
    save_file(state, file, metadata={"format": "pt"})
    ended(tmp_path / "recipe.yaml", "differs")
    after = load_file(tmp_path / "differs" / "model.safetensors")
    assert torch.equal(after["lm_head.weight"], state["lm_head.weight"])
    assert not torch.equal(after["model.embed_tokens.weight"], state["model.embed_tokens.weight"])


# ---- What is told ------------------------------------------------------------------------------


def test_each_step_and_each_source_is_written_down(built: Path) -> None:
    record = ended(changed(built, evaluate_every=3), "told")
    found = lines(built.parent / "told")
    steps = [line for line in found if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert all(line["tokens"] > 0 and line["grad_norm"] > 0 for line in steps)
    assert {"loss/code (new)", "loss/prose (old)"} <= steps[0].keys()
    looked = [line for line in found if "held_out/code (new)" in line]
    assert [line["step"] for line in looked] == [3, 6, 8]
    assert looked[-1]["held_out/code (new)"] == record["losses"]["code (new)"]["after"]
    manifest = json.loads((built.parent / "told" / "hybridize.json").read_text())
    assert "metrics.jsonl" in manifest["files"]


def test_the_first_step_of_a_warm_up_learns(built: Path) -> None:
    ended(changed(built, warmup_ratio=0.5, learning_rate=4e-3), "warm")
    rates = [line["learning_rate"] for line in lines(built.parent / "warm") if "loss" in line]
    assert rates[:5] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 4e-3])
    assert rates[-1] < 2e-3


def test_a_stage_of_one_step_learns(built: Path) -> None:
    record = ended(changed(built, tokens=4 * 32), "one-step")
    assert record["unmoved"] == []


def test_what_was_written_after_a_checkpoint_is_written_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    written = [{"stage": s, "step": n} for s in (0, 1) for n in (1, 2, 3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in written) + '{"stage": 1, "st')
    forget(file, 1, 1)
    assert [json.loads(line) for line in file.read_text().splitlines()] == written[:4]


def test_a_resumed_training_is_written_down_once(built: Path) -> None:
    recipe = changed(built, tokens=40 * 4 * 32, save_every=3)
    broken_off(recipe, "twice", checkpoints=2)
    assert train(recipe, "twice", "--resume").exit_code == 0
    steps = [line["step"] for line in lines(built.parent / "twice") if "loss" in line]
    assert steps == list(range(1, 41))


def test_checkpoints_come_as_often_as_the_recipe_says_now(built: Path) -> None:
    recipe = changed(built, tokens=40 * 4 * 32, save_every=2)
    folder = broken_off(recipe, "oftener")
    again = changed(built, tokens=40 * 4 * 32, save_every=25)
    seen = set()
    publish = os.rename

    def renamed(source: Any, target: Any) -> None:
        seen.add(Path(target).name)
        publish(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", renamed)
        assert train(again, "oftener", "--resume").exit_code == 0
    saved = {name for name in seen if name.startswith("checkpoint-")}
    assert not folder.exists()
    assert saved <= {"checkpoint-25", "checkpoint-40"}


def test_a_logger_that_is_not_installed_is_named(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    done = train(built, "logged", "--log-to", "wandb")
    assert done.exit_code == 2
    assert "not installed: wandb\n  fix: pip install wandb" in done.stderr


@pytest.mark.slow
def test_tensorboard_gets_each_step_and_each_stage(built: Path) -> None:
    """By Trainer's own integration, into files beside the result."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stages = [{"train": ["bridges"], "share": 0.5}, {"train": ["norms"], "share": 0.5}]
    ended(changed(built, stages=stages), "boarded", "--log-to", "tensorboard")
    for stage in range(2):
        events = EventAccumulator(str(built.parent / "boarded.logs" / f"stage-{stage}"))
        events.Reload()
        assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
        assert "train/loss/code (new)" in events.Tags()["scalars"]


# ---- Guards ------------------------------------------------------------------------------------


def one_word(built: Path) -> dict[str, Any]:
    """A training on a word without end, which does other text no good."""
    (built.parent / "word.txt").write_text("zq " * 9000)
    text = {"new": ["word.txt"], "old": ["prose.txt"], "replay": 0.0}
    return {"train": ["full"], "data": text, "learning_rate": 0.1, "evaluate_every": 3}


def test_old_text_that_gets_worse_is_warned_of(built: Path) -> None:
    wild = one_word(built)
    done = train(changed(built, guards={"rise": 0.01}, **wild), "worse")
    assert done.exit_code == 0, done.output[-2000:]
    assert done.stderr.count("warning: the loss on 'prose (old)' has risen by") == 1
    assert "warning: the loss on 'prose (old)' has risen by" in done.stdout


def test_old_text_that_gets_worse_stops_a_training_with_a_checkpoint(built: Path) -> None:
    """And it goes on from there where the recipe lets it rise further."""
    wild = one_word(built)
    recipe = changed(built, guards={"rise": 0.01, "then": "stop"}, **wild)
    done = train(recipe, "forgot")
    assert done.exit_code == 1
    assert "the loss on 'prose (old)' has risen by" in done.stderr
    assert "checkpoint-3 holds what was learnt before" in done.stderr
    assert (built.parent / "forgot.work" / "stage-0" / "checkpoint-3" / "checkpoint.json").is_file()
    same = train(recipe, "forgot", "--resume")
    assert same.exit_code == 1
    assert "at step 3; 0.01 is the limit" in same.stderr
    again = train(changed(built, guards={"rise": None}, **wild), "forgot", "--resume")
    assert again.exit_code == 0, again.output[-2000:]
    assert "stage 0 goes on from checkpoint-3" in again.stderr
    ended(changed(built, guards={"rise": None}, **wild), "not-stopped")
    assert tensors(built.parent / "forgot") == tensors(built.parent / "not-stopped")


def test_a_spike_stops_before_it_is_learnt(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "ENOUGH", 3)
    recipe = changed(built, guards={"spike": 1e-6}, learning_rate=1e-9, save_every=50)
    done = train(recipe, "spiked")
    assert done.exit_code == 1
    assert "is usual" in done.stderr
    assert "and --resume" in done.stderr
    stage = built.parent / "spiked.work" / "stage-0"
    (checkpoint,) = stage.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"in step {step + 1}," in done.stderr
    calm = {"learning_rate": 1e-9, "save_every": 50}
    again = train(recipe, "spiked", "--resume")
    assert again.exit_code == 1  # what is usual is remembered
    assert f"in step {step + 1}," in again.stderr
    let_pass = changed(built, guards={"spike": None}, **calm)
    assert train(let_pass, "spiked", "--resume").exit_code == 0
    ended(changed(built, guards={"spike": None}, **calm), "calm")
    assert tensors(built.parent / "spiked") == tensors(built.parent / "calm")


def test_a_spike_is_judged_by_the_usual_loss(tmp_path: Path) -> None:
    watch = Guards(GuardsSpec(spike=1.0), tmp_path)
    for step in range(guards.ENOUGH):
        watch.check_step(3.0 + 0.1 * (step % 2), 1.0, step)
    watch.check_step(4.0, 1.0, guards.ENOUGH)
    with pytest.raises(CheckFailed, match=r"the loss is 4.200 in step 22, where 3.1\d\d is usual"):
        watch.check_step(4.2, 1.0, guards.ENOUGH + 1)
    with pytest.raises(CheckFailed, match="the gradient is inf in step 3"):
        watch.check_step(3.0, float("inf"), 2)


# ---- What is named -----------------------------------------------------------------------------


def test_a_folder_is_trained_by_the_recipe_inside_it(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.parent)  # paths of that recipe start where the command is run
    done = CliRunner().invoke(main, ["cpt", "out", "--out", "by-folder", "--offline"])
    assert done.exit_code == 0, done.output[-2000:]
    ended(built, "by-recipe")
    assert tensors(built.parent / "by-folder") == tensors(built.parent / "by-recipe")


def test_text_may_be_named_on_the_command_line(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.parent)
    (built.parent / "mine.txt").write_text(prose() * 2)
    arguments = ["cpt", "out", "--out", "mine", "--text", "mine.txt", "--old", "code.txt"]
    done = CliRunner().invoke(main, [*arguments, "--tokens", "512", "--json", "--offline"])
    assert done.exit_code == 0, done.output[-2000:]
    record = json.loads(done.stdout)
    assert list(record["losses"]) == ["mine (new)", "code (old)"]
    assert sum(stage["steps"] for stage in record["stages"]) == 4
    missing = CliRunner().invoke(main, ["cpt", "out", "--text", "nowhere.txt", "--offline"])
    assert missing.exit_code == 2
    assert "nowhere.txt" in missing.stderr


def test_a_folder_that_hybridize_did_not_build_is_refused(built: Path) -> None:
    done = CliRunner().invoke(main, ["cpt", str(built.parent / "low"), "--offline"])
    assert done.exit_code == 2
    assert "hybridize did not build this" in done.stderr


def test_auto_trains_what_the_prior_says(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a diagnosis; and it is marked as a prior wherever it is shown."""
    monkeypatch.chdir(built.parent)
    auto = changed(built, train="auto")
    early = train(auto, "early")
    assert early.exit_code == 2
    assert "auto goes by a diagnosis of the model" in early.stderr
    assert "changed.yaml" in early.stderr
    text = ["--text", "code.txt", "--tokens", "256", "--seeds", "1", "--offline"]
    out = ["--out", "out/diagnosis/changed"]
    done = CliRunner().invoke(main, ["diagnose", "out", *text, *out])
    assert done.exit_code == 0, done.output[-2000:]
    shown = CliRunner().invoke(main, ["cpt", str(auto), "--built", "out", "--forecast"])
    assert shown.exit_code == 0, shown.output
    assert "prior, not measured" in shown.stdout
    record = ended(auto, "auto")
    (stage,) = record["stages"]
    assert stage["prior"].startswith("prior, not measured")
    assert stage["entries"][0] == "bridges"
    named = changed(built, train=[{"auto": "out/diagnosis/changed/trace.json"}, "head"])
    assert "head" in ended(named, "named")["stages"][0]["entries"]


def test_every_tensor_that_learns_can_be_listed(built: Path) -> None:
    folder = ["--built", str(built.parent / "out")]
    shown = CliRunner().invoke(main, ["cpt", str(built), *folder, "--forecast", "--list"]).stdout
    learns = [name for name in tensors(built.parent / "out") if name.startswith("model.layers.0.")]
    assert all(name in shown for name in [*learns, "model.bridges.2.proj.weight"])
    assert "48×32" in shown


@pytest.mark.parametrize(
    ("cpt", "found"),
    [
        (
            {"learning_rates": {"embeddings": 1e-4}},
            "a learning rate for 'embeddings', and nothing of that",
        ),
        (
            {"batch": 6, "micro_batch_size": 4},
            "a step of 6 rows cannot be shared out: 1 process, 4 rows",
        ),
        ({"average": 9}, "stage 0 has 8 steps and makes 4 checkpoints, 9 are to be averaged"),
        (
            {"average": 2, "save_every": "1m"},
            "2 checkpoints are to be averaged, and save_every is a",
        ),
        ({"cache_prefix": True}, "stage 0 has no frozen prefix to cache"),
        ({"guards": {"ries": 1}}, "did you mean 'rise'?"),
        ({"guards": {"then": "stpo"}}, "did you mean 'stop'?"),
        ({"train": [{"auto": "nowhere.json"}]}, "nowhere.json is not there"),
        (
            {"data": {"new": ["code.txt"], "old": ["code.txt"]}, "tokens": 0},
            "tokens 0 is too small",
        ),
    ],
)
def test_what_cannot_be_is_said_before_a_weight_is_read(
    built: Path, cpt: dict[str, Any], found: str
) -> None:
    done = train(changed(built, **cpt), "wrong")
    assert done.exit_code == 2
    assert found in done.stderr
    assert "changed.yaml" in done.stderr
    assert not (built.parent / "wrong.work").exists()


def test_bridges_alone_on_a_model_without_any_are_refused(tmp_path: Path) -> None:
    save_reader(tmp_path / "only", "llama")
    (tmp_path / "code.txt").write_text(code()[:6000])
    (tmp_path / "prose.txt").write_text(prose())
    data = {
        "donors": {"only": {"model": "only"}},
        "slots": [{"from": "only", "layers": "0-3"}],
        "cpt": {**SMALL, "train": ["bridges"], "data": DATA},
    }
    build_in(tmp_path, data)
    done = train(write_recipe(tmp_path / "recipe.yaml", data))
    assert done.exit_code == 2
    assert "this model has no bridges" in done.stderr


def test_a_training_whose_checkpoints_are_all_broken_does_not_begin_anew(built: Path) -> None:
    recipe = changed(built, tokens=40 * 4 * 32, save_every=3)
    folder = broken_off(recipe, "all-broken", checkpoints=2)
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / "optimizer.safetensors").unlink()
    done = train(recipe, "all-broken", "--resume")
    assert done.exit_code == 1
    assert "checkpoints is whole" in done.stderr
    assert "start over with --force" in done.stderr


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 7, "seed was 0, in this run it is 7"),
        (
            "learning_rate",
            1e-4,
            "learning rate of slot in stage 0 was 0.003, in this run 0.0001",
        ),
    ],
)
def test_another_seed_or_setting_is_refused_in_words(
    built: Path, key: str, value: Any, said: str
) -> None:
    steps = {"tokens": 40 * 4 * 32, "save_every": 3}
    out = f"another-{key}"
    broken_off(changed(built, **steps), out)
    done = train(changed(built, **steps, **{key: value}), out, "--resume")
    assert done.exit_code == 1
    assert said in done.stderr


# ---- Evaluation and checkpoints ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpt", "whole", "between", "every"),
    [
        ({}, 50_000, 6_250, 25),
        ({"tokens": 16 * 512, "batch": 4, "length": 128}, 1_024, 512, 4),
        ({"tokens": 10**9}, 65_536, 8_192, 24_415),
        ({"evaluate_tokens": 800, "tokens": 4096 * 50}, 800, 512, 5),
        ({"evaluate_tokens": 300, "evaluate_every": 7}, 300, 300, 7),
        ({"evaluate_tokens": 0}, 0, 0, 25),
    ],
)
def test_evaluation_costs_a_small_part_of_a_training(
    built: Path, cpt: dict[str, Any], whole: int, between: int, every: int
) -> None:
    """Short trainings are looked at while they run, too."""
    plan = CptPlan(
        recipe=load_recipe(built),
        spec=CptSpec(**cpt),
        stack=read_model_tensors(built.parent / "out"),
        stages=(),
        processes=1,
        micro_batch_size=1,
    )
    spec = plan.spec
    steps = -(-spec.tokens // (spec.batch * spec.length))
    stage = plan_training(load_recipe(built), built.parent / "out").stages[0]
    plan = replace(plan, stages=(replace(stage, steps=steps),))
    assert (plan.evaluate_tokens, plan.between_tokens) == (whole, between)
    assert plan.evaluate_every == every


def test_what_the_build_did_not_write_stays_behind(built: Path) -> None:
    """A result holds what its provenance vouches for, and says what it lacks."""
    strange = built.parent / "out" / "diagnosis" / "notes.txt"
    strange.parent.mkdir(exist_ok=True)
    strange.write_text("mine")
    try:
        done = train(changed(built, evaluate_tokens=0), "alone")
    finally:
        strange.unlink()
    assert done.exit_code == 0, done.output[-2000:]
    assert "left behind, since the build did not write it: diagnosis/" in done.stderr
    assert "notes.txt" in done.stderr
    assert not (built.parent / "alone" / "diagnosis").exists()
    assert verify(built.parent / "alone").ok


def test_nothing_is_evaluated_where_the_recipe_says_so(built: Path) -> None:
    done = train(changed(built, evaluate_tokens=0), "unmeasured")
    assert done.exit_code == 0, done.output[-2000:]
    assert "no losses on held-out text: evaluate_tokens is 0" in done.stdout
    assert not any("held_out" in key for line in lines(built.parent / "unmeasured") for key in line)
    assert verify(built.parent / "unmeasured").ok
    assert "No loss was measured" in (built.parent / "unmeasured" / "README.md").read_text()
    stop = {"evaluate_tokens": 0, "guards": {"then": "stop"}}
    done = train(changed(built, **stop), "wrong")
    assert done.exit_code == 2
    assert "is to stop the training, and nothing is measured" in done.stderr


def test_a_warning_comes_when_it_happens(built: Path) -> None:
    """On standard error before the training ends, by the default interval, and at the end again."""
    wild = one_word(built) | {"guards": {"rise": 0.01}, "save_every": 1}
    del wild["evaluate_every"]
    folder = broken_off(changed(built, **wild), "warned", checkpoints=2)
    assert folder.is_dir()
    done = train(changed(built, **wild), "warned-whole")
    told = done.stderr.index("warning: the loss on 'prose (old)'")
    assert "at step 4;" in done.stderr[told:].splitlines()[0]
    assert "warning: the loss on 'prose (old)'" in done.stdout


def test_checkpoints_come_by_the_clock() -> None:
    now = 0.0
    clock = SaveClock("2m", lambda: now)
    found = []
    for step in range(1, 9):
        now += 50
        if clock.is_due(step):
            found.append(step)
            clock.saved()
    assert found == [3, 6]
    assert [step for step in range(1, 9) if SaveClock(3).is_due(step)] == [3, 6]


def test_a_checkpoint_is_written_when_its_time_has_come(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who trains few, long steps has one to go on from."""
    monkeypatch.setattr(saving, "seconds_of", lambda time: 0)
    names = []
    publish = checkpoints.publish_checkpoint

    def noted(folder: Path, name: str, *rest: Any, **options: Any) -> None:
        names.append(name)
        publish(folder, name, *rest, **options)

    monkeypatch.setattr(checkpoints, "publish_checkpoint", noted)
    ended(changed(built, save_every="10m"), "by-time")
    assert names == [f"checkpoint-{step}" for step in range(1, 9)]


@pytest.mark.parametrize("wrong", ["10", "m", "0s", 0, True, 1.5, "10 minutes"])
def test_an_interval_that_is_none_is_refused(built: Path, wrong: Any) -> None:
    done = train(changed(built, save_every=wrong), "wrong")
    assert done.exit_code == 2
    assert "is not an interval" in done.stderr
    assert "write a number of steps, or a time: 30s, 10m, 1h" in done.stderr
