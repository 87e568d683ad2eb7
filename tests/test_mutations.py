"""Whatever a file holds, a command ends well or with a message, soon, and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.mutating import KINDS, MOST_BYTES, MOST_SECONDS
from tests.support.readers import prose, save_reader
from tests.support.stacks import UNFITTED, build_in, save_donor, write_recipe
from tests.support.tiny import tiny_model

ROOT = Path(__file__).parents[1]
SEED = 11
#: (a sample for every day, all)
COUNTS = {
    "recipes": (40, 2000),
    "headers": (20, 700),
    "configs": (20, 700),
    "indexes": (10, 250),
    "manifests": (10, 200),
    "tokenizers": (0, 80),
}
PLAIN: dict[str, Any] = {
    "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
    "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
    "bridges": UNFITTED,
}
RICH: dict[str, Any] = {
    "version": 1,
    "name": "rich",
    "donors": {"a": {"model": "a"}, "b": {"model": "./b"}, "m": {"model": "moe"}},
    "embeddings": "a",
    "head": "a",
    "tokenizer": "a",
    "slots": [
        {"from": "a", "layers": [0, "1-2"], "bridge": {"kind": "lowrank", "rank": 4}},
        {"from": "b", "layer": 1, "mlp": {"from": "a", "layer": 2}},
        {"from": "a", "layer": 3, "mixer": {"from": "b", "layer": 3}, "bridge": "linear"},
    ],
    "bridges": {"kind": "linear", "init": "ridge", "where": "changes", "norm": True},
    "calibration": {
        "data": ["text.txt", {"name": "t", "files": ["text.txt"], "weight": 2.0}],
        "tokens": 2000,
        "length": 32,
    },
    "target": "auto",
    "dtype": "bfloat16",
    "shard_size": "2MB",
    "placement": {
        "depth": 4,
        "candidates": [{"from": "a", "layers": "0-3"}, {"from": "b", "layers": "0-3"}],
        "max_bridges": 1,
    },
    "diagnostics": {"perturbations": ["dropout", {"kind": "noise", "strength": 0.5}], "seeds": 2},
    "cpt": {
        "train": ["bridges", {"shallow": 0.25}],
        "data": {"new": ["text.txt"], "old": [{"files": "text.txt"}]},
        "tokens": 2000,
        "learning_rate": 0.001,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutations")
    save_reader(folder / "a", "llama")
    save_reader(folder / "b", "qwen3")
    save_donor(folder / "moe", "qwen3_moe")
    save_donor(folder / "mamba", "mamba2")
    tiny_model("llama").save_pretrained(folder / "parts", max_shard_size="30KB")
    (folder / "text.txt").write_text(prose()[:3000])
    write_recipe(folder / "plain.yaml", PLAIN)
    write_recipe(folder / "two.yaml", {**PLAIN, "head": "b", "bridges": {"init": "random"}})
    write_recipe(folder / "rich.yaml", RICH)
    parts = {"a": {"model": "parts"}, "b": {"model": "moe"}}
    write_recipe(folder / "parts.yaml", {**PLAIN, "donors": parts})
    names = {"a": {"model": "a"}, "moe": {"model": "moe"}, "mamba": {"model": "mamba"}}
    slots = [{"from": name, "layers": "0-1"} for name in names]
    every = {"donors": names, "slots": slots, "head": "a", "bridges": {"init": "random"}}
    write_recipe(folder / "all.yaml", every)
    build_in(folder, {**PLAIN, "name": "built"}, "built")
    return folder


def mutate(kind: str, folder: Path, count: int) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.support.mutating",
        kind,
        str(folder),
        str(count),
        str(SEED),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    shown = "\n".join(f"{kind} {i}:\n{text}" for i, text in list(found["failures"].items())[:5])
    assert not found["failures"], f"{len(found['failures'])} failures\n{shown}"
    assert found["slowest"] < MOST_SECONDS
    assert found["peak"] < MOST_BYTES


def test_plain_input_is_what_the_commands_take(folder: Path) -> None:
    """Else all that is broken would be refused for another reason."""
    from click.testing import CliRunner

    from hybridize.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("plain", "two", "rich", "parts", "all"):
            done = CliRunner().invoke(main, ["plan", f"{name}.yaml", "--offline"])
            assert done.exit_code == 0, done.output


@pytest.mark.parametrize("kind", [kind for kind, (few, _) in COUNTS.items() if few])
def test_a_few_broken_files(kind: str, folder: Path) -> None:
    mutate(kind, folder, COUNTS[kind][0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_broken_files(kind: str, folder: Path) -> None:
    mutate(kind, folder, COUNTS[kind][1])
