"""What commands print: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import StringIO
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.text import Text

ENOUGH = 0.02  # share that is done before anything is said of what is left


def show(what: RenderableType) -> None:
    """Print a result; where standard output is no terminal, plainly and without line breaks."""
    if sys.stdout.isatty():
        Console(highlight=False, markup=False).print(what)
        return
    console = Console(highlight=False, markup=False, width=200, file=StringIO())
    with console.capture() as printed:
        console.print(what)
    # Tables fill their columns, which a terminal does not show and a file keeps.
    click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def show_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Tell on standard error what is going on."""
    click.echo(text, err=True)


def size(nbytes: float) -> str:
    """Bytes for the eye: 1.2 GB (decimal, as disks and the hub count)."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    raise AssertionError


def count(number: float) -> str:
    """A count for the eye: 1.72 B, 86.5 M, 1,024."""
    for limit, unit in ((1e9, " B"), (1e6, " M")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """A time for the eye: 0.4 s, 12 s, 4 min 10 s, 3 h 20 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


@contextmanager
def byte_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress in bytes, with an ETA: a bar on a terminal, a line every few seconds elsewhere."""
    if sys.stderr.isatty():
        from rich import progress

        columns = (progress.DownloadColumn(), progress.TransferSpeedColumn())
        with _bar(*columns) as bar:
            task = bar.add_task(label, total=total)
            yield lambda nbytes: bar.advance(task, nbytes)
    else:
        lines, done = _Lines(label, lambda done, total: f"{size(done)} of {size(total)}"), 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            lines.tell(done, total)

        yield advance


Advance = Callable[[int], None]  # told how much more is done
Tell = Callable[..., None]  # told what is done, all of it, and at times a note


def token_progress(label: str, unit: str = "tokens") -> AbstractContextManager[Tell]:
    """Progress in tokens, or what else is counted, shown as `byte_progress` is.

    A note on nothing done is told at once: how long it will take, say.
    """
    amount = "{task.completed:,.0f} of {task.total:,.0f} " + unit
    return _told(label, amount, lambda done, total: f"{done:,.0f} of {total:,.0f} {unit}")


def share_progress(label: str) -> AbstractContextManager[Tell]:
    """`token_progress` in percent, where what is counted (multiplications, say) has no name."""
    percent = "{task.percentage:.0f} %"
    return _told(label, percent, lambda done, total: f"{100 * done / total:.0f} %")


@contextmanager
def _told(label: str, column: str, amount: Callable[[float, float], str]) -> Iterator[Tell]:
    """Progress with an amount: as a column of rich's, and in words."""
    if sys.stderr.isatty():
        from rich import progress

        with _bar(progress.TextColumn(column + "  {task.fields[note]}")) as bar:
            task = bar.add_task(label, total=1, note="")

            def tell(done: int, total: int, note: str = "") -> None:
                if note and not done:
                    say(f"{label}: {note}")
                bar.update(task, completed=done, total=total, note=note)

            yield tell
    else:
        yield _Lines(label, amount).tell


def _bar(*columns: Any) -> Any:
    from rich import progress

    first = (progress.TextColumn("{task.description}"), progress.BarColumn())

    class Left(progress.TimeRemainingColumn):
        def render(self, task: Any) -> Any:
            early = not known(task.completed, task.total or 0, task.elapsed or 0.0)
            return Text("-:--:--") if early else super().render(task)

    return progress.Progress(*first, *columns, Left(), console=Console(stderr=True))


def known(done: float, total: float, seconds: float) -> bool:
    """Whether so much is done that what is left can be told from it."""
    return done >= ENOUGH * total and seconds >= 1.0


class _Lines:
    EVERY = 5.0  # seconds

    def __init__(self, label: str, amount: Callable[[float, float], str]) -> None:
        self.label, self.amount = label, amount
        self.start = self.last = time.monotonic()

    def tell(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if note and not done:
            say(f"{self.label}: {note}")
        if now - self.last < self.EVERY or not 0 < done < total:
            return
        self.last = now
        parts = [self.amount(done, total), note]
        if known(done, total, took := now - self.start):
            parts.append(f"{duration((total - done) * took / done)} left")
        say(f"{self.label}: {', '.join(filter(None, parts))}")
