"""Probe `lookup`: which value does the prompt give to a key?

Key and value have something between them, so the word before the answer does not tell: as lines
`key: value`, as sentences, and backwards, from the value to its key.
"""

from __future__ import annotations

from random import Random

from hybridize.diagnostics.probes._words import NOUNS, PEOPLE
from hybridize.diagnostics.subject.items import Item

TITLE = "looks up what the prompt says about a key"
NUM_PAIRS = (2, 3, 4, 6, 8, 10)  # in the prompt: few are easy
ITEMS_PER_LEVEL = 8


def items() -> list[Item]:
    """Always the same 48 items: of each number of pairs, 3 lines, 3 sentences, 2 backwards."""
    random = Random(1203)
    forms = (_lines, _sentences, _backwards)
    return [forms[i % len(forms)](random, num) for num in NUM_PAIRS for i in range(ITEMS_PER_LEVEL)]


def _lines(random: Random, num: int) -> Item:
    """`Anna: lamp`, a line each."""
    people, things = random.sample(PEOPLE, num), random.sample(NOUNS, num)
    asked = random.randrange(num)
    lines = [f"{person}: {thing}" for person, thing in zip(people, things, strict=True)]
    return Item("\n".join([*lines, f"{people[asked]}:"]), f" {things[asked]}")


def _sentences(random: Random, num: int) -> Item:
    """`Anna has the lamp.`"""
    people, things = random.sample(PEOPLE, num), random.sample(NOUNS, num)
    asked = random.randrange(num)
    return Item(f"{_told(people, things)} {people[asked]} has the", f" {things[asked]}")


def _backwards(random: Random, num: int) -> Item:
    """`Anna has the lamp. The lamp belongs to`"""
    people, things = random.sample(PEOPLE, num), random.sample(NOUNS, num)
    asked = random.randrange(num)
    return Item(f"{_told(people, things)} The {things[asked]} belongs to", f" {people[asked]}")


def _told(people: list[str], things: list[str]) -> str:
    pairs = zip(people, things, strict=True)
    return " ".join(f"{person} has the {thing}." for person, thing in pairs)
