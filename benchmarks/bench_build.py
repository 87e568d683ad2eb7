"""What a bit-exact build costs beside `cp` and mergekit, and how planning scales.

    python benchmarks/bench_build.py [--runs 5] [--json FILE] [--folder FOLDER]

Makes two checkpoints in the shape of a Llama in a temporary folder, stacks them by a recipe, and
runs the rivals in turn, each in a process of its own, with the donors in the page cache and nothing
left to be written to the disk. Each runs twice, and the second time counts: pages that a process
has given back cost a virtual machine as much as the copying itself. Figures are medians over the
runs; CPU seconds are user and system time of a process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from random_llama import write_llama

from hybridize.model.checkpoint import open_checkpoint

WIDTH, LAYERS, VOCABULARY = 2048, 10, 32_000  # 1.35 GB a donor
SHARD = 400_000_000  # bytes
PICKS = {"a": (0, 9), "b": (5, 9)}  # layers, inclusive
QUICK_RUNS = 11  # of commands that take less than a second
MANY = (400, 1600)  # layers of nine tensors each: 3,600 and 14,400

COPY = """
import json, re, resource, sys, time
from pathlib import Path
from hybridize.assembler.assembly.copying import copy_outputs
from hybridize.assembler.plan.outputs import native_outputs
from hybridize.assembler import make_plan
from hybridize.model.shards import lay_out
from hybridize.recipe.file import load_recipe
started = time.perf_counter()
plan = make_plan(load_recipe(Path(sys.argv[1])))
shards = lay_out(native_outputs(plan), plan.recipe.recipe.shard_size)
planned, cpu = time.perf_counter(), time.process_time()
out = Path(sys.argv[2])
out.mkdir()
for shard in shards:
    copy_outputs(shard, out / shard.name, lambda nbytes: None)
done = {"plan": planned - started, "wall": time.perf_counter() - planned}
done["cpu"] = time.process_time() - cpu
peak = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]
print(json.dumps(done | {"peak": int(peak) * 1024}))
"""

MERGEKIT = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
run_merge(config, sys.argv[2], MergeOptions(quiet=True, write_model_card=False))
"""


@dataclass(frozen=True)
class Cost:
    """Of one run, or the medians of several."""

    wall: float  # seconds
    cpu: float  # seconds, with children
    peak: float  # bytes, of the largest process

    @classmethod
    def median(cls, costs: Sequence[Cost]) -> Cost:
        columns = zip(*((cost.wall, cost.cpu, cost.peak) for cost in costs), strict=True)
        return cls(*(statistics.median(column) for column in columns))


@dataclass(frozen=True)
class Bar:
    """A promise of ours, and what was measured."""

    what: str
    measured: float
    limit: float
    unit: str

    @property
    def held(self) -> bool:
        return self.measured <= self.limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; needs 10 GB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = {
            **_build(Path(folder), arguments.runs),
            **_quick(Path(folder)),
            **_many(Path(folder)),
        }
    bars = _bars(found)
    _show(found, bars)
    if arguments.json:
        document = found | {"bars": [asdict(bar) | {"held": bar.held} for bar in bars]}
        arguments.json.write_text(json.dumps(document, indent=1, default=asdict) + "\n")


def _build(folder: Path, runs: int) -> dict[str, Any]:
    for seed, name in enumerate(PICKS):
        write_llama(
            folder / name,
            width=WIDTH,
            layers=LAYERS,
            vocabulary=VOCABULARY,
            shard=SHARD,
            seed=seed,
        )
    recipe, merge = _recipes(folder)
    reference, out = folder / "reference", folder / "out"
    build = [sys.executable, "-m", "hybridize", "build", recipe, "--check", "structure", "--out"]
    _run([*build, reference])  # warms the page cache, too
    rivals: dict[str, list[Any]] = {
        "cp": ["cp", "-r", reference, out],
        "copying": [sys.executable, "-c", COPY, recipe, out],
        "build": [*build, out],
        "mergekit": [sys.executable, "-c", MERGEKIT, merge, out],
    }
    costs: dict[str, list[Cost]] = {name: [] for name in [*rivals, "copying, inside"]}
    for _ in range(runs):
        for name, command in rivals.items():
            _run(command)
            shutil.rmtree(out)
            cost, said = _run(command)  # the second of two: it finds the memory as it left it
            costs[name].append(cost)
            if name == "copying":
                inside = json.loads(said)
                costs["copying, inside"].append(Cost(inside["wall"], inside["cpu"], inside["peak"]))
            shutil.rmtree(out)
    nbytes = open_checkpoint(reference).nbytes
    shutil.rmtree(reference)
    return {"bytes": nbytes, "runs": runs, **{n: Cost.median(found) for n, found in costs.items()}}


def _recipes(folder: Path) -> tuple[Path, Path]:
    slots = [f"{{from: {name}, layers: {a}-{b}}}" for name, (a, b) in PICKS.items()]
    recipe = folder / "stack.yaml"
    recipe.write_text(
        f"donors: {{a: {{model: a}}, b: {{model: b}}}}\nslots: [{', '.join(slots)}]\n"
        f"shard_size: {SHARD // 10**6}MB\nbridges: {{where: none}}\n"
    )
    slices = [
        {"sources": [{"model": str(folder / name), "layer_range": [a, b + 1]}]}
        for name, (a, b) in PICKS.items()
    ]
    merge = folder / "merge.yaml"
    merge.write_text(json.dumps({"slices": slices, "merge_method": "passthrough"}))
    return recipe, merge


def _run(command: Sequence[Any]) -> tuple[Cost, str]:
    os.sync()  # so that nobody pays for writing what the one before has left
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            errors.seek(0)
            sys.exit(f"{command} failed:\n{errors.read()}")
        said.seek(0)
        return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024), said.read()


def _quick(folder: Path) -> dict[str, Any]:
    """--help, and a plan of 5 donors and 100 slots."""
    names = [f"small{i}" for i in range(5)]
    for seed, name in enumerate(names):
        write_llama(folder / name, width=64, layers=24, seed=seed)
    recipe = folder / "long.yaml"
    recipe.write_text(
        f"donors: {{{', '.join(f'{name}: {{model: {name}}}' for name in names)}}}\n"
        f"slots: [{', '.join(f'{{from: {name}, layers: 2-21}}' for name in names)}]\n"
        "bridges: {init: random}\n"
    )
    command = [sys.executable, "-m", "hybridize"]
    return {
        name: Cost.median([_run([*command, *arguments])[0] for _ in range(QUICK_RUNS)])
        for name, arguments in {"--help": ["--help"], "plan": ["plan", recipe]}.items()
    }


def _many(folder: Path) -> dict[str, Any]:
    """Planning and copying of many small tensors: seconds by number of tensors."""
    found = {}
    for layers in MANY:
        write_llama(folder / f"deep{layers}", width=16, layers=layers, vocabulary=64)
        recipe = folder / f"deep{layers}.yaml"
        recipe.write_text(
            f"donors: {{a: {{model: deep{layers}}}}}\nslots: [{{from: a, layers: 0-{layers - 1}}}]"
        )
        runs = []
        for i in range(3):
            said = _run([sys.executable, "-c", COPY, recipe, folder / f"deep{layers}-{i}"])[1]
            runs.append(json.loads(said)["plan"] + json.loads(said)["wall"])
        found[f"{9 * layers} tensors"] = statistics.median(runs)
    return found


def _bars(found: dict[str, Any]) -> list[Bar]:
    cp, mergekit, build = found["cp"], found["mergekit"], found["build"]
    copying = found["copying, inside"]
    few, many = (found[f"{9 * layers} tensors"] for layers in MANY)
    return [
        Bar("copying, wall against cp", copying.wall / cp.wall, 1.15, "x"),
        Bar("copying process, CPU against mergekit", found["copying"].cpu / mergekit.cpu, 0.2, "x"),
        Bar("copying process, peak memory", copying.peak / 1e6, 100, "MB"),
        Bar("whole build, wall over cp", build.wall - cp.wall, 8, "s"),
        Bar("whole build, CPU against mergekit", build.cpu / mergekit.cpu, 0.5, "x"),
        Bar("--help", found["--help"].wall, 0.3, "s"),
        Bar("plan of 5 donors, 100 slots", found["plan"].wall, 0.5, "s"),
        Bar("4 times the tensors, time", many / few, MANY[1] / MANY[0] * 1.25, "x"),
    ]


def _show(found: dict[str, Any], bars: Sequence[Bar]) -> None:
    print(f"{found['bytes'] / 1e9:.2f} GB, medians of {found['runs']} runs in turn\n")
    print(f"{'':24}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}{'wall/cp':>9}{'CPU/mergekit':>14}")
    for name in ("cp", "copying, inside", "copying", "build", "mergekit"):
        cost = found[name]
        ratios = cost.wall / found["cp"].wall, cost.cpu / found["mergekit"].cpu
        print(f"{name:24}{cost.wall:8.2f}{cost.cpu:8.2f}{cost.peak / 1e6:9.0f}", end="")
        print(f"{ratios[0]:9.2f}{ratios[1]:14.2f}")
    for name in (f"{9 * layers} tensors" for layers in MANY):
        print(f"{name:24}{found[name]:8.2f}")
    print()
    for bar in bars:
        verdict = "held  " if bar.held else "MISSED"
        print(f"{verdict}  {bar.what}: {bar.measured:.2f} {bar.unit} (bar {bar.limit:g})")


if __name__ == "__main__":
    main()
