"""`kill -9` of every command that writes: nothing half-made is left, and the next run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import filled
from tests.support.trained_donors import save_trained

ROOT = Path(__file__).parents[1]
KILLS = {"build": 14, "diagnose": 10, "recommend": 6, "cpt": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("commands"))


@pytest.mark.slow
@pytest.mark.parametrize("command", KILLS)
def test_forty_kills(command: str, folder: Path) -> None:
    if command == "recommend":
        save_trained(folder / "sound")
        save_trained(folder / "hurt", damaged=(2, 3))
    words = [sys.executable, "-m", "tests.support.killing_commands", str(folder), command]
    done = subprocess.run(
        [*words, str(KILLS[command]), "2026"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == KILLS[command]
    assert [kill for kill in seen if not kill["sound"] or not kill["again"] or kill["left"]] == []
