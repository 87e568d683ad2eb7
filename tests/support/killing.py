"""Kills builds at random moments: `python -m tests.support.killing FOLDER KILLS SEED`.

A process of its own, which imports torch once and forks the builds that it kills, so that twenty
kills take seconds. What it saw is printed as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from blake3 import blake3

from hybridize.assembler.assembly.assemble import build
from hybridize.assembler.plan.planning import make_plan
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.files.staging import MANIFEST
from hybridize.recipe.file import load_recipe

DEADLINE = 60.0  # seconds that a build may take


def contents(folder: Path) -> dict[str, str] | None:
    """Hash of each file of a model; None where there is none."""
    if not folder.exists():
        return None
    return {
        str(path.relative_to(folder)): blake3(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def moments(kills: int, duration: float, source: random.Random) -> list[float]:
    """Random moments in seconds, one in each equal part of a duration."""
    return [duration * (i + source.random()) / kills for i in range(kills)]


def phase(target: Path, *, done: bool) -> str:
    """How far a killed build has come, as its folder tells."""
    staging = target.parent / f".{target.name}.staging"
    if done:
        return "published"
    try:
        names = [path.name for path in (staging / "model").iterdir()]
    except FileNotFoundError:  # not yet, or no longer
        return "proving" if staging.exists() else "not begun"
    if any(name.endswith(".growing") for name in names):
        return "writing"
    return "checking" if MANIFEST in names else "between files"


def _fork(recipe: Path, target: Path, *, force: bool) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        build(
            make_plan(load_recipe(recipe)),
            target,
            force=force,
            check="structure",
            worker=LocalWorker(),
        )
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def _whole(recipe: Path, target: Path, *, force: bool = False) -> float:
    """Build undisturbed; seconds."""
    start = time.monotonic()
    _, status = os.waitpid(_fork(recipe, target, force=force), 0)
    assert status == 0, f"an undisturbed build ended with {status}"
    return time.monotonic() - start


def _kill(recipe: Path, target: Path, after: float | None, *, force: bool) -> None:
    pid = _fork(recipe, target, force=force)
    if after is None:
        end = time.monotonic() + DEADLINE
        while phase(target, done=False) != "checking" and time.monotonic() < end:
            time.sleep(0.0005)
    else:
        time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def run(folder: Path, kills: int, seed: int) -> list[dict[str, Any]]:
    """Kill builds of `new.yaml`, half of them where a model of `old.yaml` is to be replaced."""
    import torch

    from hybridize.assembler.worker import requests  # noqa: F401 - before the forks

    torch.set_num_threads(1)  # a forked process must not ask the threads of its parent
    new, old, target = folder / "new.yaml", folder / "old.yaml", folder / "model"
    _whole(old, folder / "reference-old")
    _whole(new, folder / "reference")
    duration = _whole(new, target)
    whole, before = contents(folder / "reference"), contents(folder / "reference-old")
    shutil.rmtree(target)
    seen = []
    # On a busy machine no moment may fall into the end of a build: the last two wait for it.
    times = [*moments(kills - 2, duration * 1.05, random.Random(seed)), None, None]
    for i, after in enumerate(times):
        force = i % 2 == 1
        if force:
            shutil.copytree(folder / "reference-old", target)
        _kill(new, target, after, force=force)
        found = contents(target)
        reached = phase(target, done=found == whole)
        _whole(new, target, force=target.exists())
        seen.append(
            {
                "after": after,
                "phase": reached,
                "force": force,
                "sound": found in ([before, whole] if force else [None, whole]),
                "rebuilt": contents(target) == whole,
                "left": sorted(p.name for p in folder.glob(".*")),
            }
        )
        shutil.rmtree(target)
    return seen


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
