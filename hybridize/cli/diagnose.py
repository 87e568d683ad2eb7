"""The command `diagnose`: which layers of a model matter."""

from __future__ import annotations

from typing import Any

import click

from hybridize.cli.group import COMPUTE, DEVICE, MEMORY, PATH, PERTURBED, SEEDS, TEXT, common, main


@main.command(short_help="Measure how sensitive layers are, and where tasks are solved")
@click.argument("target", metavar="MODEL|RECIPE")
@TEXT
@click.option("--probes", multiple=True, help="Built-in probe set, or a JSONL file; repeatable.")
@click.option(
    "--perturb", multiple=True, help="Perturbation: KIND or KIND:STRENGTH (noise:0.5); repeatable."
)
@click.option(
    "--part",
    type=click.Choice(["layer", "mixer", "mlp"]),
    multiple=True,
    help="Part of every layer to perturb on its own; repeatable.",
)
@SEEDS
@click.option("--tokens", type=click.IntRange(64), help="Tokens of text, all domains together.")
@PERTURBED
@click.option("--budget", help="Time by which unset options are chosen: 10m, 2h.  [default: 10m]")
@click.option(
    "--layer-by-layer", is_flag=True, help="Read one layer at a time: less memory, the same bits."
)
@DEVICE
@COMPUTE
@MEMORY
@click.option("--built", type=PATH, help="Folder of the built hybrid.  [default: out/NAME]")
@click.option("--out", type=PATH, help="Folder for the report.  [default: out/diagnosis/NAME]")
@common
def diagnose(target: str, *, as_json: bool, offline: bool, **options: Any) -> None:
    """Show where a MODEL, or each donor of a RECIPE, does its tasks, and which layers matter."""
    from hybridize.console import show, show_json
    from hybridize.diagnostics.command import diagnose as measure
    from hybridize.diagnostics.report.table import trace_table

    done = measure(target, offline=offline, **options)
    if as_json:
        show_json({"folder": str(done.folder), **done.document.model_dump()})
        return
    for trace in done.document.models:
        show(trace_table(trace))
    show(done.summary())
