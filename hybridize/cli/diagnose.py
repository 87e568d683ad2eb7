"""The command `diagnose`: which layers of a model matter."""

from __future__ import annotations

from typing import Any

import click

from hybridize.cli.group import COMPUTE, DEVICE, PATH, common, main


@main.command(short_help="Where a model does its tasks, and how sensitive its layers are")
@click.argument("target", metavar="MODEL|RECIPE")
@click.option(
    "--text", multiple=True, help="File of text, one domain each.  [default: the recipe's]"
)
@click.option("--probes", multiple=True, help="Set of items, brought by hybridize or a JSONL file.")
@click.option("--perturb", multiple=True, help="How layers are perturbed: dropout, or noise:0.5.")
@click.option("--part", type=click.Choice(["layer", "mixer", "mlp"]), multiple=True)
@click.option("--seeds", type=click.IntRange(1, 100), help="Of each perturbation by chance.")
@click.option("--tokens", type=click.IntRange(64), help="Of text, over all domains.")
@click.option("--perturbed", type=click.IntRange(32), help="Tokens of text that are perturbed.")
@click.option("--budget", help="What is left open is chosen by: 10m, 2h.  [default: 10m]")
@click.option(
    "--layer-by-layer", is_flag=True, help="Read one layer at a time: less memory, the same bits."
)
@DEVICE
@COMPUTE
@click.option("--memory", help="For the states of perturbed text: 4GB.  [default: a quarter]")
@click.option("--built", type=PATH, help="Where the recipe's hybrid lies.  [default: out/NAME]")
@click.option("--out", type=PATH, help="Folder of the report.  [default: out/diagnosis/NAME]")
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
