"""The command `demo`: donors, hybrids and a training, in minutes."""

from __future__ import annotations

from pathlib import Path

import click

from hybridize.cli.group import PATH, common, main


@main.command(short_help="Train small donors and build hybrids of them, offline")
@click.option(
    "--folder", type=PATH, default=".", show_default=True, help="Where donors and models go."
)
@common
def demo(folder: Path, *, as_json: bool, offline: bool) -> None:
    """Train small donors from Python's own source text, and build hybrids of them, offline."""
    from hybridize.console import show, show_json
    from hybridize.demo.run import run_demo

    result = run_demo(folder, show=(lambda _: None) if as_json else show)
    if as_json:
        show_json(result)
