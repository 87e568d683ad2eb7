"""How fast a training is by how threads wait for each other, with free cores or beside busy ones.

    python benchmarks/bench_waiting.py [--turns 10] [--busy 2]

A Llama of 40 M parameters in fp32, its lowest 3 of 12 layers learning, one row of 512 tokens a
step. Each setting has a process of its own; they take their steps in turn, so that all see the same
machine. Prints tokens per second: the median of the turns, the slowest and the fastest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import yaml
from bench_cpt import LONG, THREADS, VOCABULARY, make_model, unbridged

from hybridize.cpt.plan.planning import plan_training
from hybridize.cpt.plan.target import find_target
from hybridize.cpt.train.forward import Forward, narrow_norms
from hybridize.cpt.train.trainable_model import let_learn, open_model

SETTINGS: dict[str, dict[str, str]] = {
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    "10,000 turns": {"GOMP_SPINCOUNT": "10000"},
    "libgomp's default": {},
}
RECIPE = "cpt.yaml"
BUSY = [sys.executable, "-c", "while True: pass"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside it")
    parser.add_argument("--steps-of", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.steps_of:
        take_steps(arguments.steps_of)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HYBRIDIZE_CACHE"] = str(folder / "cache")
        make_model(folder, torch.float32, LONG, bridged=False, quick=False)
        (folder / RECIPE).write_text(yaml.safe_dump(unbridged(steps=1)))
        took = measure(folder, turns=arguments.turns, busy=arguments.busy)
    for setting, seconds in took.items():
        speeds = [LONG / one for one in (statistics.median(seconds), max(seconds), min(seconds))]
        print("{:20}{:7.0f} ({:.0f} to {:.0f})".format(setting, *speeds))


def measure(folder: Path, *, turns: int, busy: int) -> dict[str, list[float]]:
    """Seconds of a step, by setting; one process waits while another one runs."""
    took: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    with ExitStack() as stack:
        processes = {name: start(folder, SETTINGS[name]) for name in SETTINGS}
        for process in processes.values():
            stack.callback(process.kill)
            answer(process)
        for _ in range(busy):
            stack.callback(subprocess.Popen(BUSY).kill)
        for turn in range(turns):
            for setting in [*SETTINGS][turn % 4 :] + [*SETTINGS][: turn % 4]:
                took[setting].append(answer(processes[setting]))
    return took


def start(folder: Path, setting: dict[str, str]) -> subprocess.Popen[str]:
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    environment = {key: value for key, value in os.environ.items() if key not in chosen}
    return subprocess.Popen(
        [sys.executable, __file__, "--steps-of", str(folder)],
        env=environment | setting | {"OMP_NUM_THREADS": str(THREADS)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def answer(process: subprocess.Popen[str]) -> float:
    """Let a process take a step; its seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def take_steps(folder: Path) -> None:
    """One step for each line that comes in."""
    target = find_target(folder / RECIPE, built=folder / "built", out=folder / "out")
    stage = plan_training(target.recipe, target.folder, processes=1).stages[0]
    tuned = open_model(target.folder, "cpu")
    let_learn(tuned, stage.policy)
    narrow_norms(tuned)
    forward = Forward(tuned)
    learning = [p for p in tuned.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=True)
    tokens = torch.randint(0, VOCABULARY, (1, LONG))
    for _ in sys.stdin:
        began = time.perf_counter()
        forward(tokens, tokens)["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
