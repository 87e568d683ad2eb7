"""Whether one loss is below another by more than chance: paired over stretches of the same text.

Pure, no torch. Some stretches are hard for every model: what differs between two models on the same
stretch varies far less than either loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

LEVEL = 0.05  # how often chance alone may be taken for a difference
SAME = 0.0005  # nats per byte, which three digits do not show

Losses = Mapping[str, Mapping[str, Any]]  # domain -> `per_byte` and `stretches`, both in nats


@dataclass(frozen=True)
class Gap:
    """Difference of two losses, in nats per byte; below 0, the first one is better.

    Attributes:
        error: standard error over the stretches; infinite with fewer than two.
        freedom: degrees of freedom of that error.
    """

    value: float
    error: float
    freedom: int

    @property
    def certain(self) -> bool:
        """Whether it exceeds what chance gives, and what three digits show."""
        return abs(self.value) >= SAME and chance(self.value, self.error, self.freedom) < LEVEL

    @property
    def better(self) -> bool:
        return self.certain and self.value < 0

    @property
    def worse(self) -> bool:
        return self.certain and self.value > 0

    def beside(self, name: str) -> str:
        """In words, beside what the second loss is of."""
        error = "" if math.isinf(self.error) else f" ± {self.error:.3f}"
        size = f"{abs(self.value):.3f}{error} nats per byte"
        side = "worse" if self.value > 0 else "better"
        if self.certain:
            return f"{size} {side} than {name}"
        if abs(self.value) < SAME:
            return f"as good as {name}"
        return f"not measurably {side} than {name} ({size})"


def gaps(one: Losses, other: Losses) -> dict[str, Gap]:
    """Of each domain."""
    return {domain: _gap(one[domain], other[domain]) for domain in one}


def mean_gap(one: Losses, other: Losses) -> Gap:
    """The mean over the domains, each of which counts the same."""
    found = gaps(one, other).values()
    return Gap(
        fmean(gap.value for gap in found),
        math.sqrt(sum(gap.error**2 for gap in found)) / len(found),
        min(gap.freedom for gap in found),
    )


def _gap(one: Mapping[str, Any], other: Mapping[str, Any]) -> Gap:
    stretches: Sequence[float] = one["stretches"]
    num_bytes = sum(stretches) / one["per_byte"]
    pairs = zip(stretches, other["stretches"], strict=True)
    error = sum_error(mine - theirs for mine, theirs in pairs) / num_bytes
    return Gap(one["per_byte"] - other["per_byte"], error, len(stretches) - 1)


def sum_error(values: Iterable[float]) -> float:
    """Standard error of a sum of independent values, from their own spread."""
    listed = list(values)
    return math.sqrt(len(listed) * variance(listed)) if len(listed) > 1 else math.inf


def chance(value: float, error: float, freedom: int) -> float:
    """How often a difference whose true value is 0 is at least as large, to either side.

    Student's t for a whole number of degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    if freedom < 1 or math.isinf(error):
        return 1.0
    if error == 0:
        return float(value == 0)
    angle = math.atan(abs(value) / error / math.sqrt(freedom))
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    inside = math.sin(angle) * total
    return 1 - (2 / math.pi * (angle + inside) if odd else inside)
