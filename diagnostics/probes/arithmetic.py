"""Probe `arithmetic`: what is the result, after three examples of the same kind?

No result of the examples begins as the answer does, so copying one scores nothing; and the first
digits of the answers are spread evenly, because a digit is often a token of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hybridize.diagnostics.subject.items import Item

Problem = tuple[str, int]  # what is asked, with its '=', and the result

TITLE = "computes sums, differences and products, and goes on with series of numbers"
NUM_EXAMPLES = 3


def items() -> list[Item]:
    """Always the same 48 items, from easy to hard."""
    random = Random(1204)
    kinds: list[tuple[Callable[[Random], Problem], int]] = [
        (_small_sum, 12),
        (_small_difference, 8),
        (_sum_of_three, 6),
        (_series, 8),
        (_product, 6),
        (_large_sum, 8),
    ]
    found: list[Item] = []
    for kind, num in kinds:
        for i in range(num):
            found.append(_item(random, kind, first_digit=str(1 + i % 9), taken=found))
    return found


def _item(
    random: Random, kind: Callable[[Random], Problem], *, first_digit: str, taken: list[Item]
) -> Item:
    asked = {item.prompt.rsplit("\n", 1)[-1] for item in taken}
    while True:
        question, result = kind(random)
        if str(result).startswith(first_digit) and question not in asked:
            break
    lines: list[str] = []
    while len(lines) < NUM_EXAMPLES:
        example, other = kind(random)
        if str(other)[0] != first_digit and f"{example}{other}" not in lines:
            lines.append(f"{example}{other}")
    return Item("\n".join([*lines, question]), str(result))


def _small_sum(random: Random) -> Problem:
    result = random.randint(1, 9)
    a = random.randint(0, result)
    return f"{a}+{result - a}=", result


def _small_difference(random: Random) -> Problem:
    a = random.randint(1, 9)
    b = random.randint(0, a - 1)
    return f"{a}-{b}=", a - b


def _sum_of_three(random: Random) -> Problem:
    a, b, c = (random.randint(1, 9) for _ in range(3))
    return f"{a}+{b}+{c}=", a + b + c


def _series(random: Random) -> Problem:
    """Five numbers of equal distance: `3,5,7,9,` and 11."""
    step = random.choice([1, 1, 2, 3, 5, 10])
    start = random.randint(1, 50)
    numbers = [start + i * step for i in range(5)]
    return "".join(f"{number}," for number in numbers[:4]), numbers[4]


def _product(random: Random) -> Problem:
    a, b = random.randint(2, 9), random.randint(2, 9)
    return f"{a}*{b}=", a * b


def _large_sum(random: Random) -> Problem:
    result = random.randint(20, 199)
    a = random.randint(10, result - 10)
    return f"{a}+{result - a}=", result
