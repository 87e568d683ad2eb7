"""How threads wait: what is fast on an idle machine stands still on a busy one."""

from __future__ import annotations

import os

import pytest

from hybridize.waiting import SPINS, choose_waiting


@pytest.mark.parametrize(
    ("load", "wanted"),
    [(0.1, {"GOMP_SPINCOUNT": SPINS}), (1.9, {"OMP_WAIT_POLICY": "PASSIVE"})],
)
def test_threads_sleep_where_cores_are_busy(
    load: float, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    environment: dict[str, str] = {}
    choose_waiting(environment)
    assert environment == wanted


@pytest.mark.parametrize("said", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_says_stays(said: str) -> None:
    environment = {said: "7"}
    choose_waiting(environment)
    assert environment == {said: "7"}
