"""The command `inspect`: what stands at each depth of a model."""

from __future__ import annotations

import click

from hybridize.cli.group import FULL, common, main


@main.command(short_help="Show the mixer, MLP and size of each layer of a model")
@click.argument("model")
@FULL
@common
def inspect(model: str, *, full: bool, as_json: bool, offline: bool) -> None:
    """Show the depth map of MODEL, a folder or a hub id (org/name@revision)."""
    from hybridize.console import show, show_json
    from hybridize.model.depth_map import depth_map
    from hybridize.model.donors import open_model

    found = depth_map(open_model(model, offline=offline), model)
    show_json(found.as_dict()) if as_json else show(found.table(full=full))
