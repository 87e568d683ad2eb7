"""What went wrong, where, and what to do: the one error family that users meet."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Finding:
    """One mistake: where it stands, what was found there, and the way out."""

    found: str
    fix: str | None = None
    place: str | None = None  # file:line:column, a tensor, a folder: whatever the user can go to

    def __str__(self) -> str:
        head = f"{self.place}: {self.found}" if self.place else self.found
        return f"{head}\n  fix: {self.fix}" if self.fix else head


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
        return "\n".join(str(finding) for finding in self.findings)


class CheckFailed(HybridizeError):
    """Something was checked and does not hold (verify, guards): exit status 1."""

    exit_status = 1


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A fix line for a name that is not among the known ones."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listed = f"known: {', '.join(known)}"
    return f"did you mean '{close[0]}'? ({listed})" if close else listed
