"""The command `plan`: what a build would do."""

from __future__ import annotations

from pathlib import Path

import click

from hybridize.cli.group import FULL, PATH, common, main


@main.command(short_help="What build would do; reads headers only")
@click.argument("recipe", type=PATH)
@click.option("--prove", is_flag=True, help="Run the proof of a native target now (loads torch).")
@click.option(
    "--time",
    "timed",
    is_flag=True,
    help="Benchmark this machine first, for the time estimate (loads torch).",
)
@FULL
@common
def plan(
    recipe: Path, *, prove: bool, timed: bool, full: bool, as_json: bool, offline: bool
) -> None:
    """Show what `build` would do with RECIPE; reads configs and headers only."""
    from hybridize.assembler.plan.planning import make_plan
    from hybridize.assembler.plan.report import plan_as_dict, plan_table
    from hybridize.console import show, show_json
    from hybridize.cpt.command import rates_in_plan
    from hybridize.recipe.file import load_recipe

    planned = make_plan(load_recipe(recipe), offline=offline, weights=False)
    if prove:
        from hybridize.assembler.assembly.assemble import prove_target

        planned = prove_target(planned)
    if timed:
        from hybridize.assembler.plan.estimate import machine_of
        from hybridize.machine.timing import measure_speed

        measure_speed(*machine_of(planned))
    rates = rates_in_plan(planned.recipe)
    if as_json:
        show_json(plan_as_dict(planned) | ({"learning_rates": rates} if rates else {}))
        return
    show(plan_table(planned, full=full))
    if rates:
        show("\n" + "\n".join(rates))
