"""What freezing saves in time and memory, beside what the forecast says.

    python benchmarks/bench_cpt.py [--runs 3] [--steps 8] [--quick] [--json FILE] [--folder FOLDER]
    python benchmarks/bench_cpt.py --trainer [--device cuda] [--width 2048]

Writes a Llama of 40 M parameters in bf16 with a tokenizer, builds it with a bridge at half depth,
and trains it by `hybridize cpt` under several policies, each in a process of its own, in turn:
4,096 tokens a step, 1,024 at a time, on two threads. Tokens per second are the median of a
process's steps without the first two, as its metrics.jsonl has them; peak memory is the process's
own. Figures are medians of the runs; ratios are taken within a turn. Then the same model in fp32,
8 rows of 512, a quarter of its layers learning: beside plain Trainer (plain_trainer.py), in turn;
with `--trainer` that alone, also on a GPU, where memory is what torch holds there at most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import yaml
from bench_build import Bar
from bench_diagnose import tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from hybridize.text.built_in import reference_texts

THREADS = 2
LAYERS, WIDTH, INNER = 12, 512, 2.5
BATCH, AT_ONCE, LENGTH = 16, 4, 256
ROWS, LONG = 8, 512  # of a step beside plain Trainer
VOCABULARY = 4096  # of the model; its tokenizer has half as many
SKIPPED = 2  # first steps of a process, in which memory is found and caches are filled
FULL = "full"
POLICIES: dict[str, dict[str, Any]] = {
    FULL: {"train": ["full"]},
    "shallow 25 %": {"train": [{"shallow": 0.25}]},
    "deep 25 %": {"train": [{"deep": 0.25}]},
    "bridge at half depth": {"train": ["bridges"], "cache_prefix": False},
    "bridge, cached prefix": {"train": ["bridges"], "cache_prefix": True},
    "shallow 25 %, checkpointing": {"train": [{"shallow": 0.25}], "gradient_checkpointing": True},
}

# The peak is the process's own: ru_maxrss begins with that of the process that started it.
CHILD = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(2)
import hybridize.cpt.train.training, hybridize.cpt.train.stage
def peak():
    lines = dict(l.split(":", 1) for l in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])
before = peak()
from hybridize.cli import main
try:
    main(sys.argv[1:])
finally:
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    print(json.dumps({"before": before, "peak": on_gpu or peak()}), file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="a small model, one run: a try")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--folder", type=Path, help="where the model goes")
    parser.add_argument("--trainer", action="store_true", help="beside plain Trainer alone")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="with --trainer")
    parser.add_argument("--width", type=int, default=WIDTH, help="with --trainer")
    arguments = parser.parse_args()
    runs = 1 if arguments.quick else arguments.runs
    if arguments.trainer:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            os.environ["HYBRIDIZE_CACHE"] = str(Path(name) / "cache")
            ratios = trainer_ratios(against_trainer(Path(name) / "fp32", runs, arguments))
        show_trainer(ratios, trainer_bars(ratios))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        os.environ["HYBRIDIZE_CACHE"] = str(folder / "cache")
        quick = arguments.quick
        parameters = make_model(folder, torch.bfloat16, LENGTH, bridged=True, quick=quick)
        recipes = {policy: write_recipe(folder, policy, arguments.steps) for policy in POLICIES}
        told = {policy: forecast(recipe, folder) for policy, recipe in recipes.items()}
        turns = []
        for turn in range(runs):
            turns.append({p: train(recipe, folder) for p, recipe in recipes.items()})
            print(f"turn {turn + 1} of {runs} done", file=sys.stderr)
        pairs = against_trainer(folder / "fp32", runs, arguments)
    found = {"parameters": parameters, "policies": {p: figures(turns, p, told) for p in told}}
    found["trainer"] = trainer_ratios(pairs)
    bars = [*bars_of(found["policies"]), *trainer_bars(found["trainer"])]
    show(found, bars, runs)
    if arguments.json:
        document = found | {"bars": [asdict(bar) | {"held": bar.held} for bar in bars]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


# ---- The model and its recipes ------------------------------------------------------------------


def make_model(
    folder: Path,
    dtype: torch.dtype,
    length: int,
    *,
    bridged: bool,
    quick: bool,
    width: int = WIDTH,
) -> int:
    """A Llama, its text, and the model that is built of it; the number of parameters."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    texts = reference_texts()
    reader = tokenizer(texts)
    width = width // 4 if quick else width
    config = LlamaConfig(
        hidden_size=width, intermediate_size=int(INNER * width), num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=8, vocab_size=VOCABULARY,
        max_position_embeddings=length, tie_word_embeddings=False, dtype=dtype,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder / "llama")
    reader.save_pretrained(folder / "llama")
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "text.jsonl").write_text("".join(lines))
    recipe = folder / "build.yaml"
    recipe.write_text(yaml.safe_dump(structure(bridged=bridged)))
    run_hybridize("build", str(recipe), "--out", str(folder / "built"), "--check", "structure")
    return sum(parameter.numel() for parameter in model.parameters())


def structure(*, bridged: bool = True) -> dict[str, Any]:
    """One donor, and where it is wanted a bridge in the middle that begins as nothing."""
    return {
        "donors": {"llama": {"model": "llama"}},
        "slots": [{"from": "llama", "layers": f"0-{LAYERS - 1}"}],
        "bridges": {"where": [LAYERS // 2] if bridged else "none", "init": "identity"},
    }


def write_recipe(folder: Path, policy: str, steps: int) -> Path:
    cpt = {
        **POLICIES[policy],
        "data": {"new": ["text.jsonl"]},
        "tokens": steps * BATCH * LENGTH,
        "batch": BATCH,
        "micro_batch_size": AT_ONCE,
        "length": LENGTH,
        "learning_rate": 1e-4,
    }
    file = folder / f"{'-'.join(c for c in policy.replace('%', '').split())}.yaml"
    file.write_text(yaml.safe_dump({**structure(), "cpt": cpt}))
    return file


def forecast(recipe: Path, folder: Path) -> dict[str, float]:
    """FLOPs and bytes that are told before a training."""
    told = run_hybridize(
        "cpt", str(recipe), "--built", str(folder / "built"), "--forecast", "--json"
    )
    costs = json.loads(told.stdout)["stages"][0]["costs"]["policy"]
    return {"flops": costs["flops"]["total"], "memory": costs["memory_bytes"]["total"]}


# ---- Measuring ----------------------------------------------------------------------------------


def against_trainer(
    folder: Path, runs: int, arguments: argparse.Namespace
) -> list[dict[str, dict[str, float]]]:
    """The same training by `hybridize cpt` and by plain Trainer, in turn, on a model in fp32."""
    width, device = arguments.width, arguments.device
    make_model(folder, torch.float32, LONG, bridged=False, quick=arguments.quick, width=width)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(unbridged(arguments.steps)))
    script = Path(__file__).with_name("plain_trainer.py")
    options = f"--learns {LAYERS // 4} --batch {ROWS} --length {LONG} --steps {arguments.steps}"
    options += f" --device {device}"
    command = [sys.executable, str(script), str(folder / "llama"), *options.split()]
    pairs = []
    for turn in range(runs):
        ours = train(folder / "recipe.yaml", folder, device)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        pairs.append({"ours": ours, "trainer": json.loads(done.stdout.splitlines()[-1])})
        print(f"pair {turn + 1} of {runs} done", file=sys.stderr)
    return pairs


def unbridged(steps: int) -> dict[str, Any]:
    cpt = {
        "train": [{"shallow": 0.25}], "data": {"new": ["text.jsonl"]}, "batch": ROWS,
        "length": LONG, "tokens": steps * ROWS * LONG, "learning_rate": 1e-4, "evaluate_tokens": 0,
    }  # fmt: skip
    return {**structure(bridged=False), "cpt": cpt}


def trainer_ratios(pairs: Sequence[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Ours over Trainer's, within a pair, and medians of both."""
    ratio = {
        f"{key}_ratio": statistics.median(p["ours"][key] / p["trainer"][key] for p in pairs)
        for key in ("tokens_per_second", "peak")
    }
    return {
        **ratio,
        **{
            name: statistics.median(p[name]["tokens_per_second"] for p in pairs)
            for name in pairs[0]
        },
    }


def trainer_bars(found: dict[str, float]) -> list[Bar]:
    """As many tokens a second as Trainer, and no more memory: both as ours over its own."""
    slower, more = 1 / found["tokens_per_second_ratio"], found["peak_ratio"]
    return [
        Bar("time beside plain Trainer, the same frozen set", slower, 1.0, "x"),
        Bar("peak memory beside plain Trainer", more, 1.0, "x"),
    ]


def train(recipe: Path, folder: Path, device: str = "cpu") -> dict[str, float]:
    """One training: tokens per second, peak bytes, and those of the imports alone."""
    out = folder / "trained"
    arguments = ["cpt", str(recipe), "--built", str(folder / "built"), "--out", str(out)]
    command = [sys.executable, "-c", CHILD, *arguments, "--device", device, "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    for file in sorted(out.iterdir()):
        file.unlink()
    out.rmdir()
    memory = json.loads(done.stderr.strip().splitlines()[-1])
    return {"tokens_per_second": statistics.median(speeds[SKIPPED:]), **memory}


def run_hybridize(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hybridize", *arguments, "--offline"]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def figures(
    turns: Sequence[dict[str, dict[str, float]]], policy: str, told: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Medians of a policy, and its ratios to full training within each turn."""

    def ratio(of: Any) -> float:
        return statistics.median(of(turn[policy]) / of(turn[FULL]) for turn in turns)

    return {
        **{key: statistics.median(t[policy][key] for t in turns) for key in turns[0][policy]},
        "time_ratio": 1 / ratio(lambda found: found["tokens_per_second"]),
        "memory_ratio": ratio(lambda found: found["peak"]),
        "own_memory_ratio": ratio(lambda found: found["peak"] - found["before"]),
        **{f"told_{key}_ratio": told[policy][key] / told[FULL][key] for key in told[FULL]},
    }


def bars_of(found: dict[str, dict[str, float]]) -> list[Bar]:
    bars = [
        Bar(
            f"{policy}: time beside the FLOPs that were told",
            abs(of["time_ratio"] / of["told_flops_ratio"] - 1),
            0.10,
            "off",
        )
        for policy, of in found.items()
        if policy != FULL
    ]
    shallow = found["shallow 25 %"]["own_memory_ratio"]
    return [*bars, Bar("shallow 25 %: peak memory less imports", shallow, 0.55, "of full")]


def show(found: dict[str, Any], bars: Sequence[Bar], runs: int) -> None:
    print(
        f"Llama, {found['parameters'] / 1e6:.1f} M parameters in bf16, {LAYERS} layers, "
        f"{BATCH * LENGTH:,} tokens a step, {AT_ONCE * LENGTH:,} at a time; medians of {runs} "
        f"turns, {THREADS} threads\n"
    )
    print(
        f"{'':28}{'tokens/s':>9}{'time':>7}{'FLOPs':>7}{'peak MB':>9}{'memory':>8}"
        f"{'less imports':>14}{'forecast':>10}"
    )
    for policy, of in found["policies"].items():
        print(
            f"{policy:28}{of['tokens_per_second']:9.0f}{of['time_ratio']:7.2f}"
            f"{of['told_flops_ratio']:7.2f}{of['peak'] / 1e6:9.0f}{of['memory_ratio']:8.2f}"
            f"{of['own_memory_ratio']:14.2f}{of['told_memory_ratio']:10.2f}"
        )
    print(f"\nimports alone: {found['policies'][FULL]['before'] / 1e6:.0f} MB")
    show_trainer(found["trainer"], bars)


def show_trainer(found: dict[str, float], bars: Sequence[Bar]) -> None:
    print(
        f"\nfp32, {ROWS} rows of {LONG}, a quarter learns: {found['ours']:.0f} tokens/s, plain "
        f"Trainer {found['trainer']:.0f}: {found['tokens_per_second_ratio']:.2f}x, memory "
        f"{found['peak_ratio']:.2f}x\n"
    )
    for bar in bars:
        verdict = "held  " if bar.held else "MISSED"
        print(f"{verdict}  {bar.what}: {bar.measured:.3g} {bar.unit} (bar {bar.limit:g})")


if __name__ == "__main__":
    main()
