"""Regular expressions that stand where a glob is wanted, as other trainers have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# What no glob has; or `.*` where a glob's dot and star would not end a part of a name.
_SIGNS = re.compile(r"[\\^$+|()]|\.\*(?![.]|$)|\]\*")
# Pieces of a regular expression, and what a glob has for them: nothing else can be translated.
_PIECES = {
    r"\\\.": ".",
    r"\.[*+]": "**",
    r"(?:\[0-9\]|\\d|\\w|\[\^\.\]|\[\^\\\.\])[*+]": "*",
    r"\\d": "[0-9]",
    r"\[[a-zA-Z0-9_-]+\](?![*+?{])": None,
    r"[a-zA-Z0-9_.-](?![*+?{])": None,
}
_PIECE = re.compile("|".join(f"({piece})" for piece in _PIECES))
MOST_STARS = 3  # each one more multiplies the time of a search


def looks_like_regex(pattern: str) -> bool:
    return _SIGNS.search(pattern) is not None


def as_glob(pattern: str, known: Sequence[str], matches: Callable[[str, str], bool]) -> str | None:
    """A glob for just those names that a regular expression finds; None where there is doubt.

    There is doubt where it finds others at the beginning of a name than anywhere in it: some
    trainers look in one way, and some in the other.

    Args:
        known: names of tensors.
        matches: whether a glob is a whole name.
    """
    body = pattern.removeprefix("^").removesuffix("$")
    glob = _translated(body)
    if glob is None or glob.count("*") > 2 * MOST_STARS:
        return None
    regex = re.compile(body)
    whole = pattern.endswith("$")
    at_start = {n for n in known if (regex.fullmatch(n) if whole else regex.match(n))}
    anywhere = {n for n in known if re.search(f"(?:{body}){'$' if whole else ''}", n)}
    if not at_start or (at_start != anywhere and not pattern.startswith("^")):
        return None
    candidates = [glob] if whole else [glob, f"{glob}.**", f"{glob}**"]
    return next((g for g in candidates if {n for n in known if matches(g, n)} == at_start), None)


def _translated(body: str) -> str | None:
    replaced = list(_PIECES.values())
    glob, at = "", 0
    while at < len(body):
        piece = _PIECE.match(body, at)
        if piece is None:
            return None
        assert piece.lastindex is not None
        glob += replaced[piece.lastindex - 1] or piece[0]
        at = piece.end()
    return re.sub(r"\*{3,}", "**", glob)
