"""`kill -9` at random moments: the target is whole or absent, and the next build succeeds."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_llama import write_llama
from hybridize.assembler.assembly.verify import verify
from tests.support.killing import contents, moments

ROOT = Path(__file__).parents[2]
KILLS = 17  # of forked builds; three more of the command itself
SEED = 2026


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two donors of different width; a hybrid of both in 20 files, and an older model."""
    folder = tmp_path_factory.mktemp("kill")
    write_llama(folder / "narrow", width=512, layers=12, seed=1, shard=20_000_000)
    write_llama(folder / "wide", width=640, layers=8, seed=2, shard=20_000_000)
    donors = "donors: {narrow: {model: narrow}, wide: {model: wide}}\nshard_size: 7MB\n"
    donors += "bridges: {init: random}\n"
    (folder / "new.yaml").write_text(
        donors + "name: model\n"
        "slots: [{from: narrow, layers: 0-11}, {from: wide, layers: 0-7}, {from: narrow, layer: 3}]"
    )
    (folder / "old.yaml").write_text(
        donors + "name: model\nslots: [{from: narrow, layers: [2, 1]}, {from: wide, layers: 4-6}]\n"
    )
    return folder


@pytest.fixture(scope="module")
def forked(folder: Path) -> list[dict[str, Any]]:
    """What the killing process saw; it leaves `reference` and `reference-old`."""
    command = [sys.executable, "-m", "tests.support.killing", folder, str(KILLS), str(SEED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen: list[dict[str, Any]] = json.loads(done.stdout)
    return seen


def test_a_killed_build_leaves_the_target_whole_or_absent(forked: list[dict[str, Any]]) -> None:
    """Under --force, too: there it is the old model or the new one."""
    assert len(forked) == KILLS
    assert [kill for kill in forked if not kill["sound"]] == []


def test_the_next_build_ends_as_an_undisturbed_one(forked: list[dict[str, Any]]) -> None:
    """Byte for byte, and with nothing left beside it."""
    assert [kill for kill in forked if not kill["rebuilt"] or kill["left"]] == []


def test_the_kills_met_every_phase(forked: list[dict[str, Any]]) -> None:
    """Otherwise the two tests above would say little."""
    phases = {kill["phase"] for kill in forked}

    assert phases & {"proving", "not begun"}
    assert phases & {"writing", "between files"}
    assert phases & {"checking", "published"}


def _start(folder: Path, target: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hybridize", "build", folder / "new.yaml", "--out", target]
    return subprocess.Popen(
        [*command, "--check", "structure", "--force"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _children(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in children.split()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def _kill_commands(folder: Path, kills: int) -> None:
    """Kill the command at moments spread over its duration; then build undisturbed."""
    reference, target = contents(folder / "reference"), folder / "by-command"
    start = time.monotonic()
    assert _start(folder, target).wait() == 0
    duration = time.monotonic() - start
    assert contents(target) == reference
    for i, after in enumerate(moments(kills, duration, random.Random(SEED))):
        if i % 2 and target.exists():
            shutil.rmtree(target)
        before = contents(target)
        process = _start(folder, target)
        time.sleep(after)
        helpers = _children(process.pid)
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
        assert contents(target) in (before, reference)
        end = time.monotonic() + 10
        while any(_alive(helper) for helper in helpers):
            assert time.monotonic() < end, "the second process outlives its parent"
            time.sleep(0.02)
    assert _start(folder, target).wait() == 0
    assert contents(target) == reference
    assert not list(folder.glob(".*"))
    shutil.rmtree(target)


def test_the_command_survives_kills(folder: Path, forked: list[dict[str, Any]]) -> None:
    """With its second process, which must not outlive it."""
    assert verify(folder / "reference", load="none", whole=True).ok
    _kill_commands(folder, 3)


@pytest.mark.slow
def test_the_command_survives_twenty_kills(folder: Path, forked: list[dict[str, Any]]) -> None:
    """The same, from its first import to its last rename."""
    _kill_commands(folder, 20)
