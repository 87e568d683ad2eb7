"""The command `cpt`: continued pre-training of a built model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hybridize.cli.exits import end
from hybridize.cli.group import DEVICE, PATH, common, main
from hybridize.machine import ranks


@main.command(short_help="Continue pre-training a built model, with most of it frozen")
@click.argument("recipe", metavar="RECIPE|DIR", type=PATH)
@click.option("--built", type=PATH, help="Folder of the model to train.  [default: out/NAME]")
@click.option("--out", type=PATH, help="Folder to create.  [default: the model's, with -cpt added]")
@click.option(
    "--text", multiple=True, help="Text file to learn from; repeatable.  [default: the recipe's]"
)
@click.option(
    "--old", multiple=True, help="File of old text to keep; repeatable.  [default: the recipe's]"
)
@click.option("--tokens", type=click.IntRange(1), help="Tokens to train on, all stages together.")
@click.option("--forecast", is_flag=True, help="Show what would learn and its cost, then exit.")
@click.option("--list", "listed", is_flag=True, help="With --forecast: list all trained tensors.")
@click.option(
    "--time/--no-time",
    "timed",
    default=None,
    help="With --forecast: time a few tokens.  [default: only if the model is small]",
)
@click.option("--resume", is_flag=True, help="Resume an interrupted training.")
@click.option("--force", is_flag=True, help="Discard an interrupted training and start over.")
@click.option(
    "--processes",
    type=click.IntRange(1, 1024),
    default=1,
    help="Number of processes to start on this machine.",
)
@click.option(
    "--engine",
    type=click.Choice(["ddp", "fsdp", "deepspeed"]),
    help="How processes share the work.  [default: ddp, or accelerate's config]",
)
@click.option("--accelerate", type=PATH, help="Config file of accelerate, to launch with.")
@click.option(
    "--log-to",
    type=click.Choice(["tensorboard", "trackio", "wandb"]),
    multiple=True,
    help="Logger to use besides metrics.jsonl; repeatable.",
)
@DEVICE
@common
def cpt(
    recipe: Path,
    *,
    forecast: bool,
    listed: bool,
    timed: bool | None,
    processes: int,
    accelerate: Path | None,
    as_json: bool,
    offline: bool,
    **options: Any,
) -> None:
    """Continue pre-training a built model as the section `cpt` of its recipe says.

    RECIPE's model is expected in out/NAME, or where --built says; DIR is a model folder that
    hybridize built, which contains its recipe. torchrun and accelerate launch work, too:
    torchrun ... -m hybridize cpt RECIPE.
    """
    from hybridize.console import show, show_json
    from hybridize.cpt import command

    if forecast:
        keys = ("built", "text", "old", "tokens", "engine", "device")
        asked = {key: options[key] for key in keys}
        found = command.forecast(recipe, processes=processes, timed=timed, **asked)
        show_json(found.as_dict()) if as_json else show(found.table(listed=listed))
        return
    if processes > 1 or accelerate is not None:
        from hybridize.cpt.backends.launch import launch

        given = click.get_current_context().params
        sys.exit(launch(_again(given), processes=processes, config=accelerate))
    trained = command.train(recipe, offline=offline, **options)
    if trained is not None:
        show_json(command.as_dict(trained)) if as_json else show(command.trained_table(trained))
    if ranks.processes() > 1:
        end(0)


def _again(given: dict[str, Any]) -> list[str]:
    """The command line of `cpt` for one of several processes."""
    names = {"as_json": "json"}
    found = ["cpt", str(given["recipe"])]
    for key, value in given.items():
        if key in ("recipe", "processes", "accelerate", "forecast", "listed", "timed"):
            continue
        flag = f"--{names.get(key, key).replace('_', '-')}"
        if value is True:
            found.append(flag)
        elif value not in (None, False, ()):
            values = value if isinstance(value, tuple) else (value,)
            found += [part for one in values for part in (flag, str(one))]
    return found
