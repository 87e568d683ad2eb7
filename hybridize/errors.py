"""What went wrong, where, and what to do: the one error family that users meet."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

MOST, MOST_JSON = 20, 200  # findings that are shown, on a terminal and as JSON
LONGEST, LONGEST_FOUND = 400, 2000  # characters of a path or a fix, and of what was found
KNOWN = 40  # names that a fix lists


@dataclass(frozen=True)
class Finding:
    """One mistake: where it stands, what was found there, and the way out."""

    found: str
    fix: str | None = None
    place: str | None = None  # file:line:column, a tensor, a folder: whatever the user can go to

    def __str__(self) -> str:
        found = shorten(self.found, LONGEST_FOUND)
        head = f"{shorten(self.place)}: {found}" if self.place else found
        return f"{head}\n  fix: {shorten(self.fix, LONGEST_FOUND)}" if self.fix else head

    def as_dict(self) -> dict[str, str | None]:
        """For JSON, as long as on a terminal."""
        return {
            "found": shorten(self.found, LONGEST_FOUND),
            "fix": self.fix and shorten(self.fix, LONGEST_FOUND),
            "place": self.place and shorten(self.place),
        }


class HybridizeError(Exception):
    """A mistake of the user's or a state of the machine that they can mend: exit status 2."""

    exit_status = 2

    def __init__(self, found: str, *, fix: str | None = None, place: str | None = None) -> None:
        self.findings: tuple[Finding, ...] = (Finding(found, fix, place),)
        super().__init__(str(self))

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Self:
        """Several mistakes, reported together."""
        error = cls("")
        error.findings = tuple(findings)
        error.args = (str(error),)
        return error

    def __str__(self) -> str:
        shown = self.findings[:MOST]
        # One way out of several mistakes in a row is told once, behind the last of them.
        lines = [
            str(replace(this, fix=None) if after and after.fix == this.fix else this)
            for this, after in zip(shown, (*shown[1:], None), strict=True)
        ]
        more = len(self.findings) - MOST
        return "\n".join([*lines, *([f"... and {more:,} more"] if more > 0 else [])])

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `errors`, and how many `more` there are than it lists."""
        more = max(0, len(self.findings) - MOST_JSON)
        listed = [finding.as_dict() for finding in self.findings[:MOST_JSON]]
        return {"errors": listed, **({"more": more} if more else {})}


class CheckFailed(HybridizeError):
    """Something was checked and does not hold (verify, guards): exit status 1."""

    exit_status = 1


def shorten(text: str, longest: int = LONGEST) -> str:
    """A text without its middle where it is too long, in one line."""
    text = text.replace("\0", "\\0")
    if len(text) <= longest:
        return text
    half = (longest - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A fix line for a name that is not among the known ones."""
    # Likeness takes the product of lengths: nobody has misspelt a thousand letters.
    close = difflib.get_close_matches(word[:LONGEST], known[:1000], n=1, cutoff=0.6)
    more = f", ... ({len(known):,})" if len(known) > KNOWN else ""
    listed = f"known: {', '.join(known[:KNOWN])}{more}"
    return f"did you mean '{close[0]}'? ({listed})" if close else listed
