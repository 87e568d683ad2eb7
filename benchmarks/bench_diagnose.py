"""What a sweep costs beside naive forward passes, and what memory a streamed diagnosis takes.

    python benchmarks/bench_diagnose.py [--runs 5] [--quick] [--json FILE] [--folder FOLDER]

Writes two Llamas of random weights, all on two threads:

- 16 layers, fp32: the sweep (dropout, one seed, whole layers) and the naive L + 1 forward passes of
  transformers' own model take turns in this process, on the same text and the same scored
  positions; then the sweep takes turns with its layers in memory and read from disk, each in a
  process of its own.
- 20 layers, bf16, 2.2 GB: `hybridize diagnose --stream` runs in an address space that is too small
  for the model, and without `--stream` it must fail there.

Figures are medians of the runs. The page cache is warm: the files have just been written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Threads that wait by spinning take the core that the other one needs, as soon as somebody else
# runs: what takes 0.4 s then took 30 s.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from bench_build import Bar
from naive_forwards import naive_js
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hybridize.diagnostics.measure.sheets import Points, Sheet
from hybridize.diagnostics.measure.sweep import Swept, sweep
from hybridize.diagnostics.measure.variants import Variant
from hybridize.model.checkpoint import INDEX, open_checkpoint
from hybridize.model.donors import load_donor
from hybridize.torch_model.loading import Parts, Weights

THREADS = 2
LAYERS, WIDTH, VOCABULARY = 16, 1024, 2048
ROWS, TOKENS, SCORED = 2, 64, 16
VARIANT = Variant("dropout", 0.5)
MEMORY = 10**9  # bytes for the states of perturbed text
LARGE_LAYERS, LARGE_WIDTH = 20, 2048  # 2.2 GB in bf16
ROOM = 10**9  # bytes of address space above that of a diagnosis of a model of one narrow layer

# The peak is the process's own: ru_maxrss begins with that of the process that started it.
SWEEP = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
import bench_diagnose as bench
torch.set_num_threads(bench.THREADS)
before, started = bench.status("VmHWM"), time.perf_counter()
bench.swept(bench.opened(bench.Path(sys.argv[2]), streamed=sys.argv[3] == "streamed"))
wall = time.perf_counter() - started
print(json.dumps({"wall": wall, "before": before, "peak": bench.status("VmHWM")}))
"""

DIAGNOSE = """
import json, resource, sys
from pathlib import Path
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
import torch
torch.set_num_threads(2)
from hybridize.cli import main
try:
    main(sys.argv[2:])
finally:
    lines = dict(l.split(":", 1) for l in Path("/proc/self/status").read_text().splitlines())
    peaks = {name: 1024 * int(lines[name].split()[0]) for name in ("VmPeak", "VmHWM")}
    print(json.dumps(peaks), file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small models, few runs: a try")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--folder", type=Path, help="where the models go; needs 4 GB")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    runs = min(arguments.runs, 2) if arguments.quick else arguments.runs
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, width = Path(name), WIDTH // 4 if arguments.quick else WIDTH
        write_model(folder / "model", width=width, layers=LAYERS, dtype=torch.float32)
        found = {
            "work": compare_work(folder / "model", runs),
            "memory": compare_memory(folder / "model", runs),
            "limited": run_limited(folder, quick=arguments.quick),
        }
    bars = bars_of(found)
    show(found, bars, runs)
    if arguments.json:
        document = found | {"bars": [asdict(bar) | {"held": bar.held} for bar in bars]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


# ---- The sweep beside naive forward passes ------------------------------------------------------


def compare_work(folder: Path, runs: int) -> dict[str, Any]:
    """In turns, in this process: seconds, layer-tokens, and how far the divergences differ."""
    parts = opened(folder, streamed=False)
    native = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    one = sheet()
    places = one.rows, one.columns
    counted = count_layer_tokens(native.model.layers)
    rivals: dict[str, Callable[[], Any]] = {
        "sweep": lambda: swept(parts),
        "naive": lambda: naive_js(native, one.tokens, places, [VARIANT], depth=LAYERS),
        "forward": lambda: naive_js(native, one.tokens, places, [], depth=LAYERS),
    }
    walls: dict[str, list[float]] = {name: [] for name in rivals}
    given: dict[str, Any] = {}
    for turn in range(runs + 1):
        for name, run in rivals.items():
            with counted() as tokens:
                started = time.perf_counter()
                given[name] = run()
                wall = time.perf_counter() - started
            if name == "naive":
                naive_tokens = tokens[0]
            if turn:  # the first is for warmth
                walls[name].append(wall)
    js = given["sweep"].read[0].js
    return {
        "wall": {name: statistics.median(found) for name, found in walls.items()},
        "ratio": statistics.median(
            mine / theirs for mine, theirs in zip(walls["sweep"], walls["naive"], strict=True)
        ),
        "layer_tokens": {"sweep": given["sweep"].layer_tokens, "naive": naive_tokens},
        "difference": float((js - given["naive"]).abs().max()),
        "mean_js": float(js.mean()),
        "tokens": one.tokens.numel(),
    }


def count_layer_tokens(layers: Any) -> Any:
    """A context that counts the tokens that some layers run."""

    @contextmanager
    def counted() -> Iterator[list[int]]:
        total = [0]

        def count(_: Any, args: Any, kwargs: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            total[0] += hidden.shape[:2].numel()

        handles = [m.register_forward_pre_hook(count, with_kwargs=True) for m in layers]
        try:
            yield total
        finally:
            for handle in handles:
                handle.remove()

    return counted


def sheet() -> Sheet:
    """Random text, of which positions spread over each row are scored."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCABULARY, (ROWS, TOKENS), generator=generator)
    columns = torch.linspace(1, TOKENS - 2, SCORED).long().repeat(ROWS)
    rows = torch.arange(ROWS).repeat_interleave(SCORED)
    members = torch.arange(ROWS * SCORED)
    sizes = torch.full((ROWS,), TOKENS)
    return Sheet(tokens, sizes, rows, columns, 0, members, perturbed=True)


def opened(folder: Path, *, streamed: bool) -> Parts:
    donor = load_donor(folder, name="only", source="only", place="only")
    return Weights({"only": donor}).parts("only", streamed=streamed)


def swept(parts: Parts) -> Swept:
    one = sheet()
    points = Points("text", "text", one.rows, one.tokens[one.rows, one.columns + 1])
    return sweep(parts, [one], [points], [VARIANT], memory=MEMORY, progress=lambda *_: None)


# ---- In memory and from disk -------------------------------------------------------------------


def compare_memory(folder: Path, runs: int) -> dict[str, Any]:
    """In turns, each in a process of its own: seconds, and peak memory above what stood before."""
    found: dict[str, list[dict[str, float]]] = {"in memory": [], "streamed": []}
    for _ in range(runs):
        for name, costs in found.items():
            command = [sys.executable, "-c", SWEEP, Path(__file__).parent, folder, name]
            costs.append(json.loads(run(command)[0]))
    medians = {
        name: {key: statistics.median(cost[key] for cost in costs) for key in costs[0]}
        for name, costs in found.items()
    }
    return {"bytes": open_checkpoint(folder).nbytes, **medians}


def status(key: str) -> int:
    """Bytes that this process has, or had at most: a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


# ---- A model that does not fit -----------------------------------------------------------------


def run_limited(folder: Path, *, quick: bool) -> dict[str, Any]:
    """`hybridize diagnose` in an address space that a model does not fit into.

    Limited is all address space, not RLIMIT_DATA: a mapped model takes address space as well, so
    that nothing escapes. What torch itself takes is measured, with a model of next to nothing.
    """
    text = folder / "text.txt"
    text.write_text("\n\n".join(Path(m.__file__).read_text() for m in (argparse, statistics)))
    layers, width = (LARGE_LAYERS, LARGE_WIDTH // 4) if quick else (LARGE_LAYERS, LARGE_WIDTH)
    room = ROOM // 8 if quick else ROOM
    write_model(folder / "small", width=64, layers=1, dtype=torch.bfloat16, text=text)
    write_model(folder / "large", width=width, layers=layers, dtype=torch.bfloat16, text=text)

    def diagnose(name: str, limit: int, *options: str) -> dict[str, Any]:
        command = [sys.executable, "-c", DIAGNOSE, limit, "diagnose", folder / name]
        command += ["--text", text, "--probes", "copying", "--perturb", "dropout", "--part"]
        command += ["layer", "--seeds", "1", "--tokens", "256", "--memory", "100MB", "--json"]
        command += ["--offline", "--out", folder / "out", *options]
        started = time.perf_counter()
        said, errors, code = run(command, may_fail=True)
        wall = time.perf_counter() - started
        (noted,) = (line for line in errors.splitlines() if line.startswith('{"VmPeak"'))
        peaks = json.loads(noted)  # a traceback may follow
        trace = json.loads(said)["models"][0] if code == 0 else None
        return {
            "code": code,
            "wall": wall,
            "peak": peaks["VmHWM"],
            "space": peaks["VmPeak"],
            "parameters": trace and trace["model"]["parameters"],
            "layer_tokens": trace and trace["layer_tokens"],
            "error": None if code == 0 else last_error(errors),
        }

    small = diagnose("small", 0, "--stream")
    if small["code"]:
        sys.exit(f"a small diagnosis failed: {small['error']}")
    limit = small["space"] + room
    return {
        "bytes": open_checkpoint(folder / "large").nbytes,
        "limit": limit,
        "small": small,
        "streamed": diagnose("large", limit, "--stream"),
        "in memory": diagnose("large", limit),
    }


def last_error(errors: str) -> str:
    lines = [line for line in errors.splitlines() if "Error" in line or "error" in line]
    return lines[-1][:160] if lines else errors[-160:]


def run(command: Sequence[Any], *, may_fail: bool = False) -> Any:
    """Output, errors and exit status of a process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS)}
    # One arena for all threads: each would reserve address space that nobody uses.
    environment["MALLOC_ARENA_MAX"] = "1"
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode and not may_fail:
        sys.exit(f"{command} failed:\n{done.stderr}")
    return done.stdout, done.stderr, done.returncode


# ---- Models ------------------------------------------------------------------------------------


@torch.no_grad()
def write_model(
    folder: Path, *, width: int, layers: int, dtype: torch.dtype, text: Path | None = None
) -> None:
    """A Llama of random weights, a file for each layer, of which one is held at a time.

    Args:
        text: what a tokenizer is trained on; None: it has none.
    """
    config = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), num_key_value_heads=max(1, width // 64),
        vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=False,
        dtype=dtype, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(config).state_dict().items()}
    groups = [[n for n in shapes if not n.startswith("model.layers.")]]
    groups += [[n for n in shapes if n.startswith(f"model.layers.{i}.")] for i in range(layers)]
    generator = torch.Generator().manual_seed(0)
    names = [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        tensors = {n: random_tensor(shapes[n], generator).to(dtype) for n in group}
        save_file(tensors, folder / name, metadata={"format": "pt"})
    places = {n: name for name, group in zip(names, groups, strict=True) for n in group}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    if text is not None:
        tokenizer([text.read_text()]).save_pretrained(folder)


def random_tensor(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Norms are one; matrices keep the length of what they are given."""
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * shape[-1] ** -0.5


def tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


# ---- Telling -----------------------------------------------------------------------------------


def bars_of(found: dict[str, Any]) -> list[Bar]:
    work, memory, limited = found["work"], found["memory"], found["limited"]
    tokens, streamed = work["layer_tokens"], memory["streamed"]
    return [
        Bar("sweep, wall against naive", work["ratio"], 0.55, "x"),
        Bar("sweep, layer-tokens against naive", tokens["sweep"] / tokens["naive"], 0.5, "x"),
        Bar("sweep, largest difference of a divergence", work["difference"], 1e-6, "nats"),
        Bar(
            "streamed, peak memory above the imports against the model's size",
            (streamed["peak"] - streamed["before"]) / memory["bytes"],
            0.5,
            "x",
        ),
        Bar("streamed, wall against in memory", streamed["wall"] / memory["in memory"]["wall"],
            2, "x"),
        Bar("streamed diagnosis in little memory, exit status", limited["streamed"]["code"], 0, ""),
    ]  # fmt: skip


def show(found: dict[str, Any], bars: Sequence[Bar], runs: int) -> None:
    work, memory, limited = found["work"], found["memory"], found["limited"]
    wall, tokens = work["wall"], work["layer_tokens"]
    print(
        f"{LAYERS} layers, {memory['bytes'] / 1e6:.0f} MB in fp32, {work['tokens']} tokens; ",
        end="",
    )
    print(f"medians of {runs} runs in turn, {THREADS} threads\n")
    print(f"{'':30}{'wall s':>8}{'layer-tokens':>14}{'of naive':>10}")
    print(f"{'one forward pass':30}{wall['forward']:8.2f}{LAYERS * work['tokens']:14}")
    print(f"{'naive, L + 1 forward passes':30}{wall['naive']:8.2f}{tokens['naive']:14}")
    print(f"{'sweep':30}{wall['sweep']:8.2f}{tokens['sweep']:14}{work['ratio']:10.3f}")
    print(f"mean divergence {work['mean_js']:.3g} nats; ", end="")
    print(f"largest difference {work['difference']:.1e}\n")
    print(f"{'sweep in a process of its own':30}{'wall s':>8}{'peak MB':>9}{'imports MB':>12}")
    for name in ("in memory", "streamed"):
        cost = memory[name]
        print(f"{name:30}{cost['wall']:8.2f}{cost['peak'] / 1e6:9.0f}{cost['before'] / 1e6:12.0f}")
    print(
        f"\n{limited['bytes'] / 1e9:.2f} GB in bf16, {limited['limit'] / 1e9:.2f} GB of address ",
        end="",
    )
    print("space (that of a model of one narrow layer, and the rest)")
    print(
        f"{'hybridize diagnose':30}{'wall s':>8}{'peak MB':>9}{'space MB':>10}{'layer-tokens':>14}"
    )
    for name in ("small", "streamed", "in memory"):
        cost = limited[name]
        done = cost["layer_tokens"] if cost["code"] == 0 else cost["error"]
        print(f"{name:30}{cost['wall']:8.1f}{cost['peak'] / 1e6:9.0f}", end="")
        print(f"{cost['space'] / 1e6:10.0f}  {done!s:>12}")
    print()
    for bar in bars:
        verdict = "held  " if bar.held else "MISSED"
        print(f"{verdict}  {bar.what}: {bar.measured:.3g} {bar.unit} (bar {bar.limit:g})")


if __name__ == "__main__":
    main()
