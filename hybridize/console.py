"""What commands print: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console, RenderableType


def show(what: RenderableType) -> None:
    """Print a result; where standard output is no terminal, plainly and without line breaks."""
    wide = None if sys.stdout.isatty() else 200
    Console(highlight=False, width=wide, markup=False).print(what)


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


@contextmanager
def byte_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress in bytes, with an ETA: a bar on a terminal, a line every few seconds elsewhere."""
    if sys.stderr.isatty():
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda nbytes: bar.advance(task, nbytes)
    else:
        yield _Lines(label, total).advance


class _Lines:
    EVERY = 5.0  # seconds

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.start = self.last = time.monotonic()

    def advance(self, nbytes: int) -> None:
        self.done += nbytes
        now = time.monotonic()
        if now - self.last < self.EVERY or not 0 < self.done < self.total:
            return
        self.last = now
        left = (self.total - self.done) * (now - self.start) / self.done
        say(f"{self.label}: {size(self.done)} of {size(self.total)}, {left:.0f} s left")
