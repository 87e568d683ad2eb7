"""What a command loads before it works: torch costs seconds, and half a gigabyte of memory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.random_llama import write_llama

HEAVY = {"torch", "transformers", "mergekit", "numpy", "safetensors", "accelerate", "peft"}
LIMIT = 100 << 10  # kB of memory that the copying process may take
#: Runs the command, then prints the most memory this process (not its children) has held, in kB.
WITH_PEAK = """
import atexit, pathlib, re, sys
def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\\s*(\\d+)", status)[0], file=sys.stderr)
atexit.register(peak)
from hybridize.cli import main
main(prog_name="hybridize")
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two donors of one architecture; a stack of them is native, and every byte is copied."""
    folder = tmp_path_factory.mktemp("startup")
    for seed, name in enumerate(("one", "other")):
        write_llama(folder / name, width=512, layers=12, seed=seed, shard=30 << 20)
    file = folder / "stack.yaml"
    file.write_text(
        "donors: {one: {model: one}, other: {model: other}}\n"
        "slots: [{from: one, layers: 0-11}, {from: other, layers: 4-11}]\nshard_size: 50MB\n"
        "bridges: {where: none}\n"  # random weights have no basis in common
    )
    return file


def _imports(command: Sequence[str | Path], *, cwd: Path) -> set[str]:
    """Top-level names that a command of hybridize imports in its own process."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"^import time:.*\|\s*([\w.]+)$", done.stderr, re.MULTILINE)
    assert "hybridize.cli" in found
    return {name.split(".")[0] for name in found}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["build", "--help"], ["schema"], ["inspect", "one"], ["plan", "stack.yaml"]],
    ids=" ".join,
)
def test_what_only_reads_headers_loads_no_torch(arguments: list[str], recipe: Path) -> None:
    """Help, plans and depth maps answer at once."""
    assert not _imports(["-m", "hybridize", *arguments], cwd=recipe.parent) & HEAVY


def test_the_copying_process_of_a_build_loads_no_torch(recipe: Path, tmp_path: Path) -> None:
    """Nor does a bit-exact build, whose proof and check run in a second process."""
    command = ["-m", "hybridize", "build", recipe, "--out", tmp_path / "out"]
    imported = _imports([*command, "--check", "structure"], cwd=tmp_path)

    assert (tmp_path / "out" / "hybridize.json").exists()
    assert not imported & HEAVY


def test_the_copying_process_takes_little_memory(recipe: Path, tmp_path: Path) -> None:
    """Of 100 MB, whatever the size of the model; benchmarks/ measures it on gigabytes."""
    arguments = ["build", recipe, "--out", tmp_path / "out", "--check", "structure"]
    done = subprocess.run(
        [sys.executable, "-c", WITH_PEAK, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    (peak,) = re.findall(r"VmHWM:\s*(\d+)", done.stderr)

    assert "(native" in done.stdout
    assert int(peak) < LIMIT
