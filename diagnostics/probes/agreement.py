"""Probe `agreement`: singular or plural of the English verb, by its subject?

A phrase may stand between the two, with a noun of the other number in it. Two examples, one
`is` and one `are`, say that a form of *to be* comes next; what they end in, the number of the
subject and the kind of phrase are balanced, so that no shortcut beats one half.
"""

from __future__ import annotations

from random import Random

from hybridize.diagnostics.subject.items import Item

TITLE = "English verbs agree with their subjects, across a phrase in between"
VERBS = ("is", "are")
NOUNS = (  # singular, plural
    ("file", "files"), ("name", "names"), ("value", "values"), ("key", "keys"), ("line", "lines"),
    ("object", "objects"), ("class", "classes"), ("method", "methods"), ("list", "lists"),
    ("man", "men"), ("woman", "women"), ("child", "children"), ("dog", "dogs"), ("house", "houses"),
    ("tree", "trees"), ("box", "boxes"), ("city", "cities"),
)  # fmt: skip
ADJECTIVES = ("old", "small", "first", "other", "new", "red")
PREDICATES = ("here", "ready", "empty", "hidden", "gone", "safe")
PREPOSITIONS = ("near", "behind", "beside", "under")
SEEN = ("saw", "found", "moved", "followed")
KINDS = ("plain", "adjective", "same", "other", "clause", "two")


def items() -> list[Item]:
    """Always the same 48 items: 6 kinds of subject, both numbers, both orders of the examples."""
    random = Random(1205)
    return [
        _item(random, kind, number, last)
        for kind in KINDS
        for number in (0, 1)
        for last in (0, 1)
        for _ in range(2)
    ]


def _item(random: Random, kind: str, number: int, last: int) -> Item:
    """`number` is that of the subject, `last` that of the last example: 0 singular, 1 plural."""
    first, second, *rest = random.sample(NOUNS, 5)
    predicate = random.choice(PREDICATES)
    told = [
        f"The {noun[of]} {VERBS[of]} {predicate}."
        for noun, of in ((first, 1 - last), (second, last))
    ]
    return Item(" ".join([*told, _subject(random, kind, number, rest)]), f" {VERBS[number]}")


def _subject(random: Random, kind: str, number: int, nouns: list[tuple[str, str]]) -> str:
    noun, near, far = nouns[0][number], nouns[1], nouns[2]
    between, other = random.choice(PREPOSITIONS), 1 - number
    phrases = {
        "plain": f"The {noun}",
        "adjective": f"The {random.choice(ADJECTIVES)} {noun}",
        "same": f"The {noun} {between} the {near[number]}",
        "other": f"The {noun} {between} the {near[other]}",
        "clause": f"The {noun} that {random.choice(SEEN)} the {near[other]}",
        "two": f"The {noun} {between} the {near[other]} of the {far[other]}",
    }
    return phrases[kind]
