"""Probe `induction`: does a word recall the one that followed it before?

Random words, in which a pair (x, y) stands far apart from the x at the end. What leads up to the
last x never stood there before, so a repeated passage (`copying`) does not help; a second pair is
as frequent as the first, so frequency alone does not tell.
"""

from __future__ import annotations

from random import Random

from hybridize.diagnostics.probes._words import NOUNS
from hybridize.diagnostics.subject.items import Item

TITLE = "repeats the word that followed the last word before, amid random words"
# Words around the pairs, times that each pair is seen.
LEVELS = ((12, 3), (6, 1), (16, 4), (14, 2), (24, 1), (44, 1))
ITEMS_PER_LEVEL = 8
GAP = 3  # words at least between a pair and the end


def items() -> list[Item]:
    """Always the same 48 items, from easy to hard."""
    random = Random(1202)
    return [_item(random, num, times) for num, times in LEVELS for _ in range(ITEMS_PER_LEVEL)]


def _item(random: Random, num_around: int, times: int) -> Item:
    x, y, u, v, *around = random.sample(NOUNS, 4 + num_around)
    pairs = [(x, y), (u, v)] * times
    random.shuffle(pairs)
    # Each pair goes behind another word: two pairs in a row would be a passage that repeats.
    spots = sorted(random.sample(range(num_around - GAP), len(pairs)))
    words = []
    for i, word in enumerate(around):
        words.append(word)
        if i in spots:
            words += pairs[spots.index(i)]
    return Item(" ".join([*words, x]), f" {y}")
