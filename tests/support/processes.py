"""Commands in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(recipe: Path, out: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """The command as a user types it, in a process of its own."""
    folder = recipe.parent
    command = [sys.executable, "-m", "hybridize", "cpt", str(recipe), "--device", "cpu"]
    command += ["--built", str(folder / "out"), "--out", str(folder / out), "--offline"]
    return subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def done(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return out + err
