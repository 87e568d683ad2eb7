"""The command `hybridize`: each subcommand parses, calls, prints."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import hybridize
from hybridize.errors import HybridizeError

PATH = click.Path(path_type=Path)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command, and errors as one message with an exit status."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
    @click.option("--offline", is_flag=True, help="Never ask the network, only its local cache.")
    @click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error, too.")
    @functools.wraps(command)
    def run(*args: Any, as_json: bool, offline: bool, verbose: bool, **kwargs: Any) -> None:
        try:
            command(*args, as_json=as_json, offline=offline, **kwargs)
        except HybridizeError as error:
            if verbose:
                raise
            _report(error, as_json=as_json)
            sys.exit(error.exit_status)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)

    return run


def _report(error: HybridizeError, *, as_json: bool) -> None:
    from hybridize.console import show_json

    if as_json:
        show_json({"errors": [vars(finding) for finding in error.findings]})
    click.echo(str(error), err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hybridize.__version__, prog_name="hybridize")
def main() -> None:
    """Assemble hybrid language models from pretrained modules.

    A recipe (YAML) says which layers of which donors stand where. `plan` shows what would be
    built, `build` builds and checks it, `verify` checks it again at any time.
    """


@main.command(short_help="What stands at each depth of a model")
@click.argument("model")
@common
def inspect(model: str, *, as_json: bool, offline: bool) -> None:
    """Show the depth map of MODEL, a folder or a hub id (org/name@revision)."""
    from hybridize.assembler.donors import open_model
    from hybridize.assembler.inspection import depth_map
    from hybridize.console import show, show_json

    found = depth_map(open_model(model, offline=offline), model)
    show_json(found.as_dict()) if as_json else show(found.table())


@main.command(short_help="What build would do; reads headers only")
@click.argument("recipe", type=PATH)
@click.option("--prove", is_flag=True, help="Prove a native target now (this loads torch).")
@common
def plan(recipe: Path, *, prove: bool, as_json: bool, offline: bool) -> None:
    """Show what `build` would do with RECIPE; reads configs and headers only."""
    from hybridize.assembler.plan import make_plan
    from hybridize.assembler.plan_report import plan_as_dict, plan_table
    from hybridize.console import show, show_json
    from hybridize.recipe import load_recipe

    planned = make_plan(load_recipe(recipe), offline=offline, weights=False)
    if prove:
        from hybridize.assembler.assemble import prove_target

        planned = prove_target(planned)
    show_json(plan_as_dict(planned)) if as_json else show(plan_table(planned))


@main.command(short_help="Assemble, check and publish a model")
@click.argument("recipe", type=PATH)
@click.option("--out", type=PATH, help="Folder to create.  [default: out/NAME-OF-THE-RECIPE]")
@click.option("--force", is_flag=True, help="Replace a model that hybridize built there.")
@click.option(
    "--check",
    type=click.Choice(["forward", "structure"]),
    default="forward",
    show_default=True,
    help="Load the result and run it, or only compare names and shapes with its class.",
)
@common
def build(
    recipe: Path, *, out: Path | None, force: bool, check: Any, as_json: bool, offline: bool
) -> None:
    """Assemble RECIPE into a safetensors model, check it, publish it whole."""
    from hybridize.assembler.assemble import build as assemble
    from hybridize.assembler.fit_report import fit_table
    from hybridize.assembler.plan import make_plan
    from hybridize.assembler.plan_report import plan_as_dict, plan_table
    from hybridize.assembler.staging import check_target
    from hybridize.console import show, show_json
    from hybridize.recipe import load_recipe

    read = load_recipe(recipe)
    target = out or Path("out") / read.name
    check_target(target, force=force)
    planned = make_plan(read, offline=offline)
    if not as_json:
        show(plan_table(planned))
    built = assemble(planned, target, force=force, check=check, offline=offline)
    if as_json:
        show_json({"plan": plan_as_dict(built.plan), **built.as_dict()})
    else:
        show(built.summary())
        if built.fit:
            show(fit_table(built.fit))


@main.command(short_help="Check a built model again")
@click.argument("folder", type=PATH)
@click.option(
    "--load",
    type=click.Choice(["forward", "structure", "none"]),
    default="forward",
    show_default=True,
    help="Load the model and run it, compare names and shapes with its class, or neither.",
)
@click.option("--whole", is_flag=True, help="Compare every tensor with its donor, not a sample.")
@common
def verify(folder: Path, *, load: Any, whole: bool, as_json: bool, offline: bool) -> None:
    """Check a built model against its manifest, its donors, and its class."""
    from hybridize.assembler.verify import verify as check
    from hybridize.console import show, show_json

    found = check(folder, load=load, whole=whole)
    show_json(found.as_dict()) if as_json else show(found.table())
    if not found.ok:
        sys.exit(1)


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


@main.command(short_help="The recipe's JSON schema, for editors")
@common
def schema(*, as_json: bool, offline: bool) -> None:
    """Print the JSON schema of a recipe, for editors."""
    from hybridize.console import show_json
    from hybridize.recipe import recipe_schema

    show_json(recipe_schema())
