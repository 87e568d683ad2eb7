"""The command `schema`: JSON schemas, for editors."""

from __future__ import annotations

import click

from hybridize.cli.group import common, main


@main.command(short_help="JSON schema of a recipe or a trace, for editors")
@click.argument("what", type=click.Choice(["recipe", "trace"]), default="recipe")
@common
def schema(what: str, *, as_json: bool, offline: bool) -> None:
    """Print the JSON schema of a recipe (the default) or of trace.json, for editors."""
    from hybridize.console import show_json

    if what == "trace":
        from hybridize.diagnostics.subject.trace import trace_schema

        show_json(trace_schema())
    else:
        from hybridize.recipe.file import recipe_schema

        show_json(recipe_schema())
