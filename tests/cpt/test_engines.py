"""Several processes: the engine that was asked for runs, and what comes of it is the same.

Who trains on more than one device needs to know that FSDP and DDP are no other training.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from hybridize.assembler.assembly.verify import verify
from hybridize.cpt.backends.engines import asked_engine, engine_in_use
from hybridize.errors import CheckFailed, HybridizeError
from tests.support.processes import done, start
from tests.support.stacks import build_in, write_recipe
from tests.support.trainings import prepare, tensors, train

STEPS = 12
FEW: dict[str, Any] = {
    "stages": [
        {"train": ["bridges"], "share": 0.5},
        {"train": ["bridges", {"shallow": 1}, "norms"], "share": 0.5},
    ],
    "tokens": STEPS * 8 * 32,
    "batch": 8,
    "micro_batch_size": 2,
    "evaluate_every": 3,
}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one process, by DDP and by FSDP2 in two; each accumulates."""
    folder = tmp_path_factory.mktemp("engines")
    recipe = prepare(folder, **FEW)
    told = done(start(recipe, "ddp", "--processes", "2"))
    assert "engine: ddp, 2 processes, cpu\n" in told
    told = done(start(recipe, "fsdp", "--processes", "2", "--engine", "fsdp"))
    assert "engine: fsdp, 2 processes, cpu, 44 of 44 parameters sharded\n" in told
    single = train(recipe, "single")
    assert single.exit_code == 0, single.output[-2000:]
    return folder


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_every_loss_is_that_of_one_process(runs: Path, engine: str) -> None:
    """Of each step and each source, of the gradient's norm, and on held-out text."""
    alone, together = metrics(runs / "single"), metrics(runs / engine)
    assert len(alone) == len(together)
    assert [line["step"] for line in alone if line["stage"] == 1 and "loss" in line] == [
        1, 2, 3, 4, 5, 6,
    ]  # fmt: skip
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"tokens_per_second"}:
            assert one[key] == pytest.approx(other[key], abs=1e-4), key


@pytest.mark.parametrize("engine", ["single", "ddp", "fsdp"])
def test_what_is_frozen_keeps_its_bytes_and_the_result_loads(runs: Path, engine: str) -> None:
    before, after = tensors(runs / "out"), tensors(runs / engine)
    changed = {name for name in before if before[name] != after[name]}
    learns = ("model.bridges.", "model.layers.0.")
    assert changed == {n for n in before if n.startswith(learns) or "norm" in n}
    assert verify(runs / engine).ok
    model = AutoModelForCausalLM.from_pretrained(runs / engine)
    assert bool(model(torch.arange(8)[None]).logits.isfinite().all())
    record = json.loads((runs / engine / "hybridize.json").read_text())["training"][0]
    assert record["stages"][0]["engine"].startswith(engine.replace("single", "one process"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_processes_that_are_killed_go_on_to_the_same_weights(runs: Path, engine: str) -> None:
    out = f"killed-{engine}"
    options = ("--processes", "2", "--engine", engine)
    process = start(runs / "recipe.yaml", out, *options)
    work = runs / f"{out}.work"
    while not list(work.glob("stage-1/checkpoint-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    told = done(start(runs / "recipe.yaml", out, *options, "--resume"))
    assert "stage 1 goes on from checkpoint-" in told
    assert tensors(runs / out) == tensors(runs / engine)


@pytest.mark.slow
def test_sixteen_bits_are_sharded_as_they_are(tmp_path: Path) -> None:
    """Frozen tensors in bf16 and fp32 masters in one unit; slots computed again, tensors tied."""
    recipe = prepare(tmp_path, **FEW | {"gradient_checkpointing": True})
    data = yaml.safe_load(recipe.read_text()) | {"dtype": "bfloat16"}
    data["cpt"]["stages"][1]["train"].append("embeddings")
    shutil.rmtree(tmp_path / "out")
    build_in(tmp_path, data)
    write_recipe(recipe, data)
    done(start(recipe, "fsdp", "--processes", "2", "--engine", "fsdp"))
    assert train(recipe, "single").exit_code == 0
    for one, other in zip(metrics(tmp_path / "single"), metrics(tmp_path / "fsdp"), strict=True):
        for key in one.keys() - {"tokens_per_second"}:
            assert one[key] == pytest.approx(other[key], abs=2e-2), key
    before, after = tensors(tmp_path / "out"), tensors(tmp_path / "fsdp")
    learns = ("model.bridges.", "model.layers.0.", "model.embed_tokens.")
    changed = {name for name in before if before[name] != after[name]}
    assert all(name.startswith(learns) or "norm" in name for name in changed)
    assert any(name.startswith("model.layers.0.") for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_is_the_same_training(runs: Path, stage: int) -> None:
    """Its first two stages, by accelerate's configuration, where DeepSpeed is installed."""
    pytest.importorskip("deepspeed")
    folder = runs / f"deepspeed-{stage}"
    folder.mkdir()
    settings = {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }
    (folder / "deepspeed.json").write_text(json.dumps(settings))
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "num_processes": 2,
        "num_machines": 1,
        "machine_rank": 0,
        "use_cpu": False,
        "deepspeed_config": {
            "deepspeed_config_file": str(folder / "deepspeed.json"),
            "zero3_init_flag": False,
        },
    }
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(config))
    accelerate = ("--accelerate", str(folder / "accelerate.yaml"))
    told = done(start(runs / "recipe.yaml", f"ds-{stage}", *accelerate, DS_ACCELERATOR="cpu"))
    assert "engine: deepspeed, 2 processes" in told
    for one, other in zip(metrics(runs / "single"), metrics(runs / f"ds-{stage}"), strict=True):
        for key in one.keys() - {"tokens_per_second", "grad_norm"}:
            assert one[key] == pytest.approx(other[key], abs=1e-4), key


@pytest.mark.slow
def test_a_training_may_go_on_with_another_number_of_processes(runs: Path) -> None:
    process = start(runs / "recipe.yaml", "moved", "--processes", "2", "--engine", "fsdp")
    while not list((runs / "moved.work").glob("stage-1/checkpoint-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert train(runs / "recipe.yaml", "moved", "--resume").exit_code == 0
    last, wanted = metrics(runs / "moved")[-1], metrics(runs / "single")[-1]
    for key, value in wanted.items():
        assert last[key] == pytest.approx(value, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_plain_launchers_start_it_too(runs: Path, launcher: str) -> None:
    """As they are, with the engine of accelerate's configuration."""
    begin = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    wanted = "engine: ddp, 2 processes"
    config = runs / "accelerate.yaml"
    if launcher == "accelerate":
        config.write_text(
            "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 2\n"
            "num_machines: 1\nmachine_rank: 0\nuse_cpu: false\nmixed_precision: bf16\n"
            "fsdp_config:\n  fsdp_version: 2\n  fsdp_cpu_ram_efficient_loading: true\n"
            "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
        )
        wanted = "engine: fsdp, 2 processes, cpu, 44 of 44 parameters sharded"
        begin = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command = ["-m", "hybridize", "cpt", str(runs / "recipe.yaml"), "--built", str(runs / "out")]
    command += ["--out", str(runs / launcher), "--device", "cpu", "--offline"]
    found = subprocess.run([*begin, *command], capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr[-3000:]
    assert wanted in found.stderr
    last, same = metrics(runs / launcher)[-1], metrics(runs / "single")[-1]
    for key, value in same.items():
        assert last[key] == pytest.approx(value, abs=1e-4)


def test_a_mistake_is_told_once(runs: Path) -> None:
    process = start(runs / "recipe.yaml", "ddp", "--processes", "2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err[-2000:]
    assert err.count("is there already") == 1
    assert "Traceback" not in err + out


def test_an_engine_that_is_not_in_use_is_noticed() -> None:
    """accelerate runs DDP where FSDP was asked for on processors, and says nothing."""
    model = torch.nn.Linear(2, 2)
    with pytest.raises(CheckFailed, match="fsdp was asked for, and accelerate runs MULTI_CPU"):
        engine_in_use("fsdp", model, "MULTI_CPU", 1)
    with pytest.raises(CheckFailed, match="0 of 2 parameters sharded"):
        engine_in_use("fsdp", model, "FSDP", 1)
    assert str(engine_in_use("single", model, "NO", 1)) == "one process, cpu"


def test_processes_that_accelerate_does_not_see_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would give all of them the same rows."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CheckFailed, match="2 processes were started, and accelerate sees 1"):
        engine_in_use("deepspeed", torch.nn.Linear(2, 2), "DEEPSPEED", 1)


def test_an_engine_for_several_processes_wants_several(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HybridizeError, match="fsdp wants several processes, and there is one"):
        asked_engine("fsdp")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert asked_engine(None) == "ddp"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert asked_engine(None) == "fsdp"
    with pytest.raises(HybridizeError, match="--engine ddp, and accelerate's configuration says"):
        asked_engine("ddp")
