"""The command `recommend`: which donor's layers belong where."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hybridize.cli.group import COMPUTE, DEVICE, MEMORY, PATH, PERTURBED, SEEDS, TEXT, common, main


@main.command(short_help="Which donor's layers belong where, as a recipe")
@click.argument("recipe", type=PATH)
@click.option("--write", type=PATH, help="File for the recommended recipe, with reasons.")
@click.option("--force", is_flag=True, help="Overwrite the file named by --write.")
@TEXT
@SEEDS
@click.option("--tokens", type=click.IntRange(64), help="Tokens of text for diagnosing donors.")
@PERTURBED
@click.option("--budget", help="Time for diagnosing the donors: 10m, 2h.  [default: 10m]")
@click.option(
    "--layer-by-layer", is_flag=True, help="Read one layer at a time while donors are diagnosed."
)
@DEVICE
@COMPUTE
@MEMORY
@common
def recommend(recipe: Path, *, as_json: bool, offline: bool, **options: Any) -> None:
    """Say which layers of RECIPE's donors belong where (its `placement` says what may be moved).

    Donors are diagnosed, placements scored by a prior, and the best few assembled in memory and
    measured beside their controls.
    """
    from hybridize.console import show, show_json
    from hybridize.diagnostics.recommendation.command import recommend as measure
    from hybridize.diagnostics.recommendation.outcome import as_dict, recommendation_table

    found, written = measure(recipe, offline=offline, **options)
    if as_json:
        show_json({"written": str(written) if written else None, **as_dict(found)})
    else:
        show(recommendation_table(found))
        if written:
            show(f"\nwritten: {written}; build it: hybridize build {written}")
    if found.chosen is None:
        sys.exit(1)
