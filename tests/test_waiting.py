"""How threads wait: what is fast on an idle machine stands still on a busy one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import Popen

import pytest

from hybridize.machine import waiting
from hybridize.machine.waiting import SPINS, choose_waiting


@pytest.mark.parametrize(
    ("load", "others", "wanted"),
    [
        (0.1, 2, {"GOMP_SPINCOUNT": SPINS}),
        (1.9, 0, {"GOMP_SPINCOUNT": SPINS}),  # what was busy has ended
        (1.9, 2, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_threads_sleep_where_cores_are_busy(
    load: float,
    others: int,
    wanted: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "loadavg").write_text(f"{load} 0.5 0.5 {1 + others}/300 4711\n")
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(waiting, "LOAD", tmp_path / "loadavg")
    environment: dict[str, str] = {}
    choose_waiting(environment)
    assert environment == wanted


@pytest.mark.parametrize("said", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_says_stays(said: str) -> None:
    environment = {said: "7"}
    choose_waiting(environment)
    assert environment == {said: "7"}


@pytest.mark.skipif(not waiting.LOAD.is_file(), reason="Linux alone says what runs now")
def test_a_busy_process_is_seen_at_once() -> None:
    busy = [Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        assert max(waiting.running_now() for _ in range(20)) >= 2
    finally:
        for process in busy:
            process.kill()
            process.wait()
