"""Numbers and slots in words, as table, report and summary write them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from hybridize.diagnostics.subject.trace import Slot


def number(value: float | None, digits: int = 2) -> str:
    """A measured value for the eye: 0.0024, 1.5, 292; `-` for none."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}".replace("e-0", "e-")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def numbers(values: Sequence[int]) -> str:
    """Rising whole numbers in words: `1, 3 to 5 and 8`."""
    words: list[str] = []
    for _, pairs in groupby(enumerate(values), lambda pair: pair[1] - pair[0]):
        run = [value for _, value in pairs]
        words += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(value) for value in run]
    return listed(words)


def listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def origin(slot: Slot) -> str:
    """Where a slot's layer comes from, as recipes write it: `llama:3`, `+bridge` behind."""
    return f"{slot.donor}:{slot.layer}" + (" +bridge" if slot.bridge else "")


def mixer_kind(slot: Slot) -> str:
    """What mixes tokens in a slot, in one word where the config has one for it."""
    if slot.mixer is None:
        return "-"
    name, _, kind = slot.mixer.partition(" (")
    return kind.rstrip(")") or name
