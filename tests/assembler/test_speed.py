"""Seconds that are told come from what this machine was measured to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridize.machine import speed, timing
from hybridize.machine.speed import Speed, known_speed, remember
from hybridize.machine.timing import measure_speed

FAST = Speed(
    device="cpu",
    dtype="float32",
    layers={256: 1e10, 1024: 4e10},
    head=5e10,
    training=0.5,
    copying=1e9,
    starting=3.0,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRIDIZE_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("width", "rate"), [(64, 1e10), (256, 1e10), (512, 2e10), (1024, 4e10), (8192, 4e10)]
)
def test_seconds_lie_between_the_widths_that_were_measured(width: int, rate: float) -> None:
    assert FAST.seconds(1e12, width) == pytest.approx(1e12 / rate)
    assert FAST.seconds(1e12, width, training=True) == pytest.approx(2e12 / rate)
    assert FAST.head_seconds(1e12) == pytest.approx(20)


def test_a_measurement_is_remembered_for_this_machine_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known_speed("cpu", "float32") is None
    remember(FAST)
    assert known_speed("cpu", "float32") == FAST
    assert known_speed("cpu", "bfloat16") is None
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    assert known_speed("cpu", "float32") is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 0}', '{"format": 1, "x": 2}'])
def test_a_damaged_note_is_none(cache: Path, content: str) -> None:
    remember(FAST)
    (note,) = (cache / "speed").iterdir()
    note.write_text(content)
    assert known_speed("cpu", "float32") is None


def test_this_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers, so that the test is short; the numbers are this machine's own."""
    for name, value in {"WIDTHS": (64, 128), "VOCABULARY": 100, "COPIED": 1 << 20}.items():
        monkeypatch.setattr(timing, name, value)
    monkeypatch.setattr(timing, "_starting", lambda: 1.0)
    found = measure_speed("cpu", "float32")
    assert set(found.layers) == {64, 128}
    assert all(1e6 < rate < 1e15 for rate in (*found.layers.values(), found.head, found.copying))
    assert found.training > 0
    monkeypatch.setattr(timing, "measure_speed", None)
    assert found == speed.known_speed("cpu", "float32")
