"""How a command ends: its message, and its exit status."""

from __future__ import annotations

import atexit
import os
import sys
import time

import click

from hybridize.errors import HybridizeError
from hybridize.files.reading import system_error
from hybridize.machine import ranks


def end(status: int) -> None:
    """Exit; one of several processes goes at once.

    After the collectives of a sharded model torch's own threads may abort a process while its
    interpreter is taken down, when all is done: seen in 4 of some 70 trainings on processors.
    """
    if ranks.processes() == 1:
        sys.exit(status)
    atexit._run_exitfuncs()  # loggers finish here
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def let_the_first_process_speak() -> None:
    """Of several processes that fail alike the first one says so, and its launcher ends the others.

    One that fails alone is still there after a while, and speaks for itself.
    """
    if not ranks.is_main():
        time.sleep(15)


def report(error: HybridizeError | OSError, *, as_json: bool) -> int:
    """Say what went wrong; the exit status."""
    from hybridize.console import show_json

    if isinstance(error, OSError):  # a full disk, a folder that cannot be written
        error = system_error(error)
    if as_json:
        show_json(error.as_dict())
    click.echo(str(error), err=True)
    return error.exit_status
