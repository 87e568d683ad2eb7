"""The command `hybridize`, and what all of its commands share."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import hybridize
from hybridize.cli.exits import end, let_the_first_process_speak, report
from hybridize.errors import HybridizeError
from hybridize.machine.waiting import choose_waiting

choose_waiting()

PATH = click.Path(path_type=Path)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where models run; auto: on a GPU if torch sees one.",
)
COMPUTE = click.option(
    "--compute-dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Dtype to compute in; auto: as stored, float32 if the device is slow at it.",
)
TEXT = click.option(
    "--text", multiple=True, help="Text file, one domain; repeatable.  [default: the recipe's]"
)
SEEDS = click.option(
    "--seeds", type=click.IntRange(1, 100), help="Seeds for each random perturbation."
)
PERTURBED = click.option(
    "--perturbed", type=click.IntRange(32), help="Tokens to run with perturbed layers."
)
MEMORY = click.option(
    "--memory", help="Memory for perturbed states: 4GB.  [default: a quarter of what is free]"
)
FULL = click.option("--full", is_flag=True, help="Show every layer; do not group equal ones.")


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command, and errors as one message with an exit status."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON to standard output.")
    @click.option("--offline", is_flag=True, help="Use no network, only files in the local cache.")
    @click.option("-v", "--verbose", is_flag=True, help="On an error, show the full traceback.")
    @functools.wraps(command)
    def run(*args: Any, as_json: bool, offline: bool, verbose: bool, **kwargs: Any) -> None:
        try:
            command(*args, as_json=as_json, offline=offline, **kwargs)
        except BrokenPipeError:  # `| head`: click ends quietly
            raise
        except (HybridizeError, OSError) as error:
            if verbose:
                raise
            let_the_first_process_speak()
            end(report(error, as_json=as_json))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hybridize.__version__, prog_name="hybridize")
def main() -> None:
    """Assemble hybrid language models from pretrained modules.

    A recipe (YAML) says which layers of which donors go where. `plan` shows what would be
    built, `build` builds and checks it, `verify` checks it again at any time. `diagnose` measures
    which layers matter, `recommend` suggests which belong where, `cpt` continues pre-training.
    """
