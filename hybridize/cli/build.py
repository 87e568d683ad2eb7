"""The command `build`: from a recipe to a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hybridize.cli.group import COMPUTE, PATH, common, main


@main.command(short_help="Assemble, check and publish a model")
@click.argument("recipe", type=PATH)
@click.option("--out", type=PATH, help="Folder to create.  [default: out/NAME-OF-THE-RECIPE]")
@click.option("--force", is_flag=True, help="Replace a model that hybridize built there.")
@click.option(
    "--check",
    type=click.Choice(["forward", "structure"]),
    default="forward",
    show_default=True,
    help="Load and run the result, or only check its tensor names and shapes.",
)
@COMPUTE
@common
def build(
    recipe: Path,
    *,
    out: Path | None,
    force: bool,
    check: Any,
    compute_dtype: str,
    as_json: bool,
    offline: bool,
) -> None:
    """Assemble RECIPE into a safetensors model, check it, publish it whole."""
    from hybridize.assembler.assembly.assemble import build as assemble
    from hybridize.assembler.assembly.fit_report import fit_table
    from hybridize.assembler.plan.planning import make_plan
    from hybridize.assembler.plan.report import plan_as_dict, plan_table
    from hybridize.console import show, show_json
    from hybridize.files.staging import check_target
    from hybridize.recipe.file import load_recipe

    read = load_recipe(recipe)
    target = out or Path("out") / read.name
    check_target(target, force=force)
    planned = make_plan(read, offline=offline)
    if not as_json:
        show(plan_table(planned))
    built = assemble(
        planned, target, force=force, check=check, offline=offline, compute_dtype=compute_dtype
    )
    if as_json:
        show_json({"plan": plan_as_dict(built.plan), **built.as_dict()})
    else:
        show(built.summary())
        if built.fit:
            show(fit_table(built.fit))
