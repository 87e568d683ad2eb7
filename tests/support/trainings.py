"""Trainings by the command, of tiny models."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from click.testing import CliRunner, Result

from hybridize.cli import main
from hybridize.cpt import command
from hybridize.model.checkpoint import open_checkpoint
from tests.support.readers import code, prose, save_reader
from tests.support.stacks import UNFITTED, build_in, write_recipe

DATA = {"new": ["code.txt"], "old": ["prose.txt"], "replay": 0.25}


STEPS = 40


SMALL: dict[str, Any] = {
    "train": ["bridges", {"shallow": 1}],
    "data": DATA,
    "tokens": STEPS * 4 * 32,
    "length": 32,
    "batch": 4,
    "learning_rate": 3e-3,
    "save_every": 3,
}


def prepare(folder: Path, **cpt: Any) -> Path:
    """A built hybrid of two tiny donors, one recurrent and one not, and its recipe."""
    save_reader(folder / "low", "llama", num_hidden_layers=2)
    save_reader(folder / "high", "qwen3", seed=1, hidden_size=48)
    (folder / "code.txt").write_text(code())
    (folder / "prose.txt").write_text(prose())
    recipe = {
        "donors": {"low": {"model": "low"}, "high": {"model": "high"}},
        "slots": [{"from": "low", "layers": "0-1"}, {"from": "high", "layers": "0-1"}],
        "bridges": UNFITTED,
        "cpt": {**SMALL, **cpt},
    }
    build_in(folder, recipe)
    return write_recipe(folder / "recipe.yaml", recipe)


def train(recipe: Path, out: str = "trained", *options: str) -> Result:
    folder = recipe.parent
    arguments = ["cpt", str(recipe), "--built", str(folder / "out"), "--out", str(folder / out)]
    return CliRunner().invoke(main, [*arguments, "--offline", *options])


def tensors(folder: Path) -> dict[str, str]:
    """sha256 of each tensor's bytes."""
    found = {}
    for name, header in open_checkpoint(folder).tensors.items():
        with header.file.open("rb") as file:
            file.seek(header.start)
            found[name] = hashlib.sha256(file.read(header.nbytes)).hexdigest()
    return found


def broken_off(
    recipe: Path, out: str, *, checkpoints: int = 1, pattern: str = "checkpoint-*"
) -> Path:
    """The working folder of a training that was killed as soon as it had so many checkpoints."""
    folder = recipe.parent / f"{out}.work" / "stage-0"
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            command.train(
                recipe, built=recipe.parent / "out", out=recipe.parent / out, device="cpu",
                offline=True, resume=False, force=False,
            )  # fmt: skip
        finally:
            os._exit(0)
    while len(list(folder.glob(pattern))) < checkpoints:
        ended, _ = os.waitpid(child, os.WNOHANG)
        assert not ended, "the training ended before it was killed"
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return folder


def changed(recipe: Path, **cpt: Any) -> Path:
    """Another recipe for the same model."""
    data = yaml.safe_load(recipe.read_text())
    data["cpt"] |= cpt
    return write_recipe(recipe.with_name("changed.yaml"), data)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def ended(recipe: Path, out: str = "trained", *options: str) -> dict[str, Any]:
    done = train(recipe, out, "--json", *options)
    assert done.exit_code == 0, done.output[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found
