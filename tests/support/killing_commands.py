"""Kills commands at random: `python -m tests.support.killing_commands FOLDER COMMAND KILLS SEED`.

A process of its own, which imports torch once and forks what it kills. It prints as JSON what was
there after each kill, and after the next run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hybridize.assembler.assembly import assemble
from hybridize.assembler.assembly.verify import verify
from hybridize.assembler.worker.worker import LocalWorker
from hybridize.cli import main
from tests.support.commands import COMMANDS
from tests.support.killing import contents, moments


def _fork(words: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    status = 70
    try:
        main(words)
    except SystemExit as done:
        status = int(done.code or 0)
    finally:
        os._exit(status)


def _whole(words: list[str]) -> float:
    """Run undisturbed; seconds."""
    start = time.monotonic()
    _, status = os.waitpid(_fork(words), 0)
    assert status == 0, f"an undisturbed run ended with {status}: {words}"
    return time.monotonic() - start


def _made(command: str, target: Path) -> dict[str, str] | None:
    """Hash of each file that a command has made; of a training, those that tell no time."""
    if not target.exists():
        return None
    found = contents(target) if target.is_dir() else contents(target.parent)
    if command == "recommend":
        return {name: value for name, value in (found or {}).items() if name == target.name}
    if command == "cpt":
        return {name: value for name, value in (found or {}).items() if "safetensors" in name}
    return found


def _sound(command: str, target: Path, whole: dict[str, str]) -> bool:
    """Whether a target is whole or not there; the files of a report come one by one."""
    made = _made(command, target)
    if made is None or made == whole:
        return command != "cpt" or made is None or verify(target, load="none").ok
    shown = {name: value for name, value in made.items() if not name.startswith(".")}
    return command == "diagnose" and shown.items() <= whole.items()


def run(folder: Path, command: str, kills: int, seed: int) -> list[dict[str, Any]]:
    """Kill a command, look, and run it again."""
    import torch

    from hybridize.assembler.worker import requests  # noqa: F401 - before the forks
    from hybridize.cpt.train import training as pretraining  # noqa: F401
    from hybridize.diagnostics.recommendation.trial import recommending  # noqa: F401

    torch.set_num_threads(1)  # a forked process must not ask the threads of its parent
    assemble.WorkerProcess = LocalWorker  # type: ignore[misc, assignment]
    os.chdir(folder)
    place = folder / f"killed-{command}"
    target, work = place / "made", place / "made.work"
    words = [str(target) if word == "OUT" else word for word in COMMANDS[command]] + ["--offline"]
    place.mkdir()
    duration = _whole(words)
    whole = _made(command, target)
    assert whole
    seen = []
    for after in moments(kills, duration, random.Random(seed)):
        shutil.rmtree(place)
        place.mkdir()
        pid = _fork(words)
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        done = {"after": after, "came": target.exists(), "sound": _sound(command, target, whole)}
        if command in ("build", "recommend", "cpt") and target.exists():
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        _whole([*words, *(["--resume"] if work.exists() else [])])
        again = _made(command, target) == whole
        left = sorted(p.name for p in place.rglob(".*")) + [work.name] * work.exists()
        seen.append({**done, "again": again, "left": left})
    return seen


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
