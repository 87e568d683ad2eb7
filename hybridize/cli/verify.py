"""The command `verify`: a built model, checked again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hybridize.cli.group import PATH, common, main


@main.command(short_help="Check a built model again")
@click.argument("folder", type=PATH)
@click.option(
    "--load",
    type=click.Choice(["forward", "structure", "none"]),
    default="forward",
    show_default=True,
    help="Load and run the model, only check tensor names and shapes, or neither.",
)
@click.option("--whole", is_flag=True, help="Compare every tensor with its donor, not a sample.")
@click.option("--expect", metavar="HASH", help="Hash of hybridize.json that build printed.")
@common
def verify(
    folder: Path,
    *,
    load: Any,
    whole: bool,
    expect: str | None,
    as_json: bool,
    offline: bool,
) -> None:
    """Check a built model against its manifest, its donors, and its class."""
    from hybridize.assembler.assembly.verify import verify as check
    from hybridize.console import show, show_json

    found = check(folder, load=load, whole=whole, expect=expect)
    show_json(found.as_dict()) if as_json else show(found.table())
    if not found.ok:
        sys.exit(1)
