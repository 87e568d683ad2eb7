"""What commands print on standard error while they work."""

from __future__ import annotations

import pytest

from hybridize import console


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_what_is_left_is_told_once_enough_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thousandth was done after six seconds of preparation: "117186 s left"."""
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with console.token_progress("reading") as tell:
        tell(0, 1000, "about 2 min 0 s")
        for clock.now, done in ((6.0, 1), (12.0, 100), (14.0, 150), (18.0, 200)):
            tell(done, 1000, "")
        tell(1000, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "reading: about 2 min 0 s",
        "reading: 1 of 1,000 tokens",
        "reading: 100 of 1,000 tokens, 1 min 48 s left",
        "reading: 200 of 1,000 tokens, 1 min 12 s left",
    ]


def test_a_share_is_told_of_what_has_no_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A diagnosis said "190,701,818,880 of 15,802,259,720,320 tokens": multiplications."""
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with console.share_progress("diagnosing") as tell:
        for clock.now in (6.0, 12.0):
            tell(190_701_818_880 if clock.now < 10 else 7_901_129_860_160, 15_802_259_720_320)
    assert capsys.readouterr().err.splitlines() == [
        "diagnosing: 1 %",
        "diagnosing: 50 %, 12 s left",
    ]


def test_bytes_tell_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with console.byte_progress("copying", 10_000) as advance:
        for clock.now in (6.0, 12.0):
            advance(100 if clock.now < 10 else 4900)
    assert capsys.readouterr().err.splitlines() == [
        "copying: 100 B of 10 kB",
        "copying: 5 kB of 10 kB, 12 s left",
    ]
