"""A difference of losses is stated only where chance does not explain it."""

from __future__ import annotations

import math
import random
from statistics import NormalDist
from typing import Any

import pytest

from hybridize.text.comparison import Gap, chance, gaps, mean_gap, sum_error

# Two-sided 5 % points of Student's t, from printed tables.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize(("freedom", "t"), TABLE.items())
def test_chance_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert chance(t, 1.0, freedom) == pytest.approx(0.05, abs=3e-5)
    assert chance(-t, 1.0, freedom) == chance(t, 1.0, freedom)


def test_chance_tends_to_the_normal_distribution() -> None:
    two_sided = 2 * (1 - NormalDist().cdf(1.7))
    assert chance(1.7, 1.0, 20_000) == pytest.approx(two_sided, abs=1e-4)


def test_what_has_no_error_is_certain_and_what_has_one_stretch_is_not() -> None:
    assert Gap(0.1, 0.0, 5).worse
    assert chance(0.0, 0.0, 5) == 1.0
    assert not Gap(0.1, math.inf, 0).certain
    assert sum_error([1.0]) == math.inf


def losses(stretches: list[float], num_bytes: int) -> dict[str, Any]:
    return {"per_byte": sum(stretches) / num_bytes, "stretches": stretches}


def test_a_small_difference_on_the_same_stretches_is_seen() -> None:
    """Stretches differ by a hundred nats, the models by two on each: unpaired it would be lost."""
    draw = random.Random(0)
    hard = [draw.uniform(100, 200) for _ in range(20)]
    easy = [nats - 2 + draw.gauss(0, 1) for nats in hard]
    one, other = {"a": losses(hard, 4000)}, {"a": losses(easy, 4000)}
    gap = gaps(one, other)["a"]
    assert gap.value == pytest.approx(sum(hard) / 4000 - sum(easy) / 4000)
    pairs = [a - b for a, b in zip(hard, easy, strict=True)]
    mean = sum(pairs) / 20
    spread = math.sqrt(sum((p - mean) ** 2 for p in pairs) / 19 * 20)
    assert gap.error == pytest.approx(spread / 4000)
    assert gap.worse
    assert gaps(other, one)["a"].better


def test_noise_is_no_difference() -> None:
    """Of 400 pairs of equal models about 5 % differ; by twice the error, 12 % would."""
    draw, wrong = random.Random(1), 0
    for _ in range(400):
        one, other = ([draw.gauss(100, 5) for _ in range(5)] for _ in range(2))
        wrong += gaps({"a": losses(one, 500)}, {"a": losses(other, 500)})["a"].certain
    assert 6 <= wrong <= 36


def test_the_mean_over_domains_has_the_error_of_both() -> None:
    one = {"a": losses([10.0, 12.0, 11.0], 10), "b": losses([5.0, 9.0], 10)}
    other = {"a": losses([9.0, 9.0, 9.0], 10), "b": losses([5.0, 5.0], 10)}
    each, both = gaps(one, other), mean_gap(one, other)
    assert both.value == pytest.approx((each["a"].value + each["b"].value) / 2)
    assert both.error == pytest.approx(math.hypot(each["a"].error, each["b"].error) / 2)
    assert both.freedom == 1


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (Gap(0.314, 0.012, 20), "0.314 ± 0.012 nats per byte worse than gdn alone"),
        (Gap(-0.1, 0.01, 20), "0.100 ± 0.010 nats per byte better than gdn alone"),
        (Gap(0.01, 0.02, 20), "not measurably worse than gdn alone (0.010 ± 0.020 nats per byte)"),
        (Gap(0.5, math.inf, 0), "not measurably worse than gdn alone (0.500 nats per byte)"),
        (Gap(0.0, 0.0, 20), "as good as gdn alone"),
    ],
)
def test_words(gap: Gap, words: str) -> None:
    assert gap.beside("gdn alone") == words
