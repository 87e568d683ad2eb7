"""What bridges in closed form are worth before any training, and what fitting them takes.

    python benchmarks/bench_bridges.py [--seeds 3] [--json FILE] [--folder FOLDER]

Trains small donors from several seeds (once: they are kept in the folder), stacks them by recipes,
builds each stack with its bridges made in every way, and prints what the builds measured on
held-out text. Two processes of one thread each.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from bridge_stacks import INITS, OTHER, PAIRS, SEVERAL, STACKS, VOCABULARY, Trial, donor_recipes
from bridge_tables import Fit, memory_table, tables

from hybridize.assembler.assembly.assemble import build
from hybridize.assembler.plan.planning import make_plan
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.console import say
from hybridize.demo.donors import quiet, train_donors
from hybridize.demo.training import train_tokenizer
from hybridize.machine.lifeline import end_with_parent
from hybridize.recipe.file import load_recipe
from hybridize.text import calibration
from hybridize.text.built_in import read_corpus

PROCESSES = 2
TOKENS = 65_536  # of calibration text
FEW, MANY = 20_000, 200_000  # tokens of the builds whose memory is measured

Key = TypeVar("Key")

PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of donors, counted from 0")
    parser.add_argument("--json", type=Path, help="write all that was measured to this file")
    parser.add_argument("--folder", type=Path, default=Path("out/bench/bridges"))
    arguments = parser.parse_args()
    started = time.monotonic()
    seeds, folder = range(arguments.seeds), arguments.folder.resolve()
    with ProcessPoolExecutor(
        PROCESSES, get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
    ) as pool:
        each = functools.partial(_each, pool, folder)
        each("donors", _train, [(name, seed) for name in donor_recipes(0) for seed in seeds])
        fits = each("builds", _fit, _trials(seeds))
        fits |= {_with_ridge(trial): fit for trial, fit in fits.items() if _is_all_ridge(fit)}
        left = [_with_ridge(t) for t in fits if t.init == "auto" and _with_ridge(t) not in fits]
        fits |= each("builds with ridge alone", _fit, left)
        peaks = each("memory", _peak, [FEW, MANY])
    for part in (*tables(fits, seeds), memory_table(peaks)):
        print(part, end="\n\n")
    print(f"{TOKENS} tokens a build; {time.monotonic() - started:.0f} s for all.")
    if arguments.json:
        rows = [asdict(trial) | {"stack": trial.stack.name, "fit": fits[trial]} for trial in fits]
        document = {"builds": rows, "peak_bytes": peaks}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _trials(seeds: Iterable[int]) -> Iterator[Trial]:
    """All but those of ridge: where auto chose it for every bridge, the build is the same."""
    for seed in seeds:
        for stack in STACKS:
            yield from (Trial(stack, seed, init) for init in INITS if init != "ridge")
        yield from (Trial(stack, seed, "ridge", stream="donor") for stack in SEVERAL)


def _with_ridge(trial: Trial) -> Trial:
    return replace(trial, init="ridge")


def _is_all_ridge(fit: Fit) -> bool:
    return bool(fit["bridges"]) and all(bridge["init"] == "ridge" for bridge in fit["bridges"])


def _each(
    pool: ProcessPoolExecutor,
    folder: Path,
    what: str,
    task: Callable[[Path, Key], Any],
    keys: Iterable[Key],
) -> dict[Key, Any]:
    """Result of a task for each key."""
    futures = {key: pool.submit(task, folder, key) for key in keys}
    found = {}
    for key, future in futures.items():
        found[key] = future.result()
        say(f"{what}: {len(found)} of {len(futures)}")
    return found


# What the workers do.


def _start_worker(parent: int) -> None:
    end_with_parent(parent)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    quiet()
    torch.set_num_threads(1)
    # Every build reads the same library, which takes half as long as a fit.
    setattr(calibration, "read_corpus", _library)  # noqa: B010


_library = functools.cache(read_corpus)


@functools.cache
def _other_tokenizer() -> Any:
    return train_tokenizer(_library(), vocabulary=VOCABULARY, domains=("code",))


def _train(folder: Path, donor: tuple[str, int]) -> None:
    name, seed = donor
    train_donors(
        folder / f"seed-{seed}",
        _library(),
        say=lambda line: None,
        processes=1,
        donors={name: donor_recipes(seed)[name]},
        tokenizer=_other_tokenizer() if name == OTHER else None,
    )


def _fit(folder: Path, trial: Trial) -> Fit:
    with tempfile.TemporaryDirectory() as place, redirect_stderr(io.StringIO()):
        recipe = _write_recipe(Path(place), folder, trial, TOKENS)
        plan = make_plan(load_recipe(recipe))
        built = build(plan, Path(place) / "out", prover=LocalWorker(), check="structure")
    assert built.fit is not None
    return built.fit


def _peak(folder: Path, tokens: int) -> int:
    """Peak memory in bytes of the larger process of a build.

    A small process starts it: a child begins as large as the process that it comes from.
    """
    with tempfile.TemporaryDirectory() as place:
        recipe = _write_recipe(Path(place), folder, Trial(PAIRS[0], 0, "ridge"), tokens)
        command = ["hybridize", "build", str(recipe), "--out", f"{place}/out"]
        said = subprocess.run(
            [sys.executable, "-c", PEAK, sys.executable, "-m", *command],
            check=True,
            capture_output=True,
            text=True,
        )
    return int(said.stdout)


def _write_recipe(place: Path, folder: Path, trial: Trial, tokens: int) -> Path:
    models = folder / f"seed-{trial.seed}"
    recipe = {
        "donors": {name: {"model": str(models / name)} for name in trial.stack.donors},
        "slots": trial.stack.slots,
        "bridges": {"init": trial.init, "seed": trial.seed},
        "calibration": {"tokens": tokens, "stream": trial.stream},
    }
    file = place / "recipe.yaml"
    file.write_text(json.dumps(recipe))  # JSON is YAML, too
    return file


if __name__ == "__main__":
    main()
