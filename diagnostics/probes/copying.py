"""Probe `copying`: which word goes on, where a whole sentence is being repeated?

Sentences of random words, so that nothing but the prompt knows the answer; longer ones, and those
that were seen once only, are harder.
"""

from __future__ import annotations

from random import Random

from hybridize.diagnostics.probes._words import NOUNS
from hybridize.diagnostics.subject.items import Item

TITLE = "goes on with a sentence of random words that stood in the prompt before"
LEVELS = ((4, 3), (4, 1), (6, 2), (8, 1), (14, 1), (24, 1))  # words of a sentence, times it is seen
ITEMS_PER_LEVEL = 8


def items() -> list[Item]:
    """Always the same 48 items, from easy to hard."""
    random = Random(1201)
    return [
        _item(random, num_words, times)
        for num_words, times in LEVELS
        for _ in range(ITEMS_PER_LEVEL)
    ]


def _item(random: Random, num_words: int, times: int) -> Item:
    words = random.sample(NOUNS, num_words)
    known = random.randint(1, num_words - 1)  # words of the repetition that are given
    sentence = " ".join(words)
    prompt = ". ".join([sentence] * times + [" ".join(words[:known])])
    return Item(prompt, f" {words[known]}")
