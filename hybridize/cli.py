"""The command `hybridize`: each subcommand parses, calls, prints."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import hybridize
from hybridize.errors import HybridizeError
from hybridize.files.reading import system_error
from hybridize.machine.waiting import choose_waiting

choose_waiting()

PATH = click.Path(path_type=Path)
DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
COMPUTE = click.option(
    "--compute-dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="What models compute in; auto: as stored, or float32 where the device is slow in that.",
)

FULL = click.option("--full", is_flag=True, help="Show every layer, not runs of equal ones.")


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command, and errors as one message with an exit status."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
    @click.option("--offline", is_flag=True, help="Never ask the network, only its local cache.")
    @click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error, too.")
    @functools.wraps(command)
    def run(*args: Any, as_json: bool, offline: bool, verbose: bool, **kwargs: Any) -> None:
        try:
            command(*args, as_json=as_json, offline=offline, **kwargs)
        except BrokenPipeError:  # `| head`: click ends quietly
            raise
        except (HybridizeError, OSError) as error:
            if verbose:
                raise
            _let_the_first_process_speak()
            _end(_report(error, as_json=as_json))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)

    return run


def _end(status: int) -> None:
    """Exit; one of several processes goes at once.

    After the collectives of a sharded model torch's own threads may abort a process while its
    interpreter is taken down, when all is done: seen in 4 of some 70 trainings on processors.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(status)
    atexit._run_exitfuncs()  # loggers finish here
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _let_the_first_process_speak() -> None:
    """Of several processes that fail alike the first one says so, and its launcher ends the others.

    One that fails alone is still there after a while, and speaks for itself.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        time.sleep(15)


def _report(error: HybridizeError | OSError, *, as_json: bool) -> int:
    """Say what went wrong; the exit status."""
    from hybridize.console import show_json

    if isinstance(error, OSError):  # a full disk, a folder that cannot be written
        error = system_error(error)
    if as_json:
        show_json(error.as_dict())
    click.echo(str(error), err=True)
    return error.exit_status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hybridize.__version__, prog_name="hybridize")
def main() -> None:
    """Assemble hybrid language models from pretrained modules.

    A recipe (YAML) says which layers of which donors stand where. `plan` shows what would be
    built, `build` builds and checks it, `verify` checks it again at any time. `diagnose` measures
    which layers matter, `recommend` says which belong where.
    """


@main.command(short_help="What stands at each depth of a model")
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


@main.command(short_help="What build would do; reads headers only")
@click.argument("recipe", type=PATH)
@click.option("--prove", is_flag=True, help="Prove a native target now (this loads torch).")
@click.option("--time", "timed", is_flag=True, help="Time this machine first (this loads torch).")
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
@click.option("--expect", metavar="HASH", help="Of hybridize.json, as build printed it.")
@common
def verify(
    folder: Path,
    *,
    load: Any,
    whole: bool,
    expect: str | None,
    as_json: bool,
    offline: bool,
) -> None:
    """Check a built model against its manifest, its donors, and its class."""
    from hybridize.assembler.assembly.verify import verify as check
    from hybridize.console import show, show_json

    found = check(folder, load=load, whole=whole, expect=expect)
    show_json(found.as_dict()) if as_json else show(found.table())
    if not found.ok:
        sys.exit(1)


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
@click.option("--stream", is_flag=True, help="Read one layer at a time: less memory, as many bits.")
@DEVICE
@COMPUTE
@click.option("--memory", help="For the states of perturbed text: 4GB.  [default: a quarter]")
@click.option("--built", type=PATH, help="Where the recipe's hybrid lies.  [default: out/NAME]")
@click.option("--out", type=PATH, help="Folder of the report.  [default: out/diagnosis/NAME]")
@common
def diagnose(target: str, *, as_json: bool, offline: bool, **options: Any) -> None:
    """Show where a MODEL, or each donor of a RECIPE, does its tasks, and which layers matter."""
    from hybridize.console import show, show_json
    from hybridize.diagnostics.command import run
    from hybridize.diagnostics.report.table import trace_table

    done = run(target, offline=offline, **options)
    if as_json:
        show_json({"folder": str(done.folder), **done.document.model_dump()})
        return
    for trace in done.document.models:
        show(trace_table(trace))
    show(done.summary())


@main.command(short_help="Which donor's layers belong where, as a recipe")
@click.argument("recipe", type=PATH)
@click.option("--write", type=PATH, help="Write the recommended recipe, with its reasons.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option(
    "--text", multiple=True, help="File of text, one domain each.  [default: the recipe's]"
)
@click.option("--seeds", type=click.IntRange(1, 100), help="Of each perturbation by chance.")
@click.option("--tokens", type=click.IntRange(64), help="Of text for the diagnosis of donors.")
@click.option("--perturbed", type=click.IntRange(32), help="Tokens of text that are perturbed.")
@click.option(
    "--budget", help="Time for diagnosing donors, by perturbing less: 10m, 2h.  [default: 10m]"
)
@click.option("--stream", is_flag=True, help="Read one layer at a time while donors are diagnosed.")
@DEVICE
@COMPUTE
@click.option("--memory", help="For the states of perturbed text: 4GB.  [default: a quarter]")
@common
def recommend(recipe: Path, *, as_json: bool, offline: bool, **options: Any) -> None:
    """Say which layers of RECIPE's donors belong where (its `placement` says what may be moved).

    Donors are diagnosed, placements scored by a prior, and the best few assembled in memory and
    measured beside their controls.
    """
    from hybridize.console import show, show_json
    from hybridize.diagnostics.recommendation.command import run
    from hybridize.diagnostics.recommendation.outcome import as_dict, recommendation_table

    found, written = run(recipe, offline=offline, **options)
    if as_json:
        show_json({"written": str(written) if written else None, **as_dict(found)})
    else:
        show(recommendation_table(found))
        if written:
            show(f"\nwritten: {written}; build it: hybridize build {written}")
    if found.chosen is None:
        sys.exit(1)


@main.command(short_help="Go on training a built model, with only what should learn")
@click.argument("recipe", metavar="RECIPE|DIR", type=PATH)
@click.option("--built", type=PATH, help="The model to train.  [default: out/NAME]")
@click.option("--out", type=PATH, help="Folder to create.  [default: that of the model, and -cpt]")
@click.option("--text", multiple=True, help="File to learn from.  [default: the recipe's]")
@click.option("--old", multiple=True, help="File of text to keep.  [default: the recipe's]")
@click.option("--tokens", type=click.IntRange(1), help="Of the whole training.")
@click.option("--forecast", is_flag=True, help="Show what would learn and what it costs, and stop.")
@click.option("--list", "listed", is_flag=True, help="With --forecast: every tensor that learns.")
@click.option(
    "--time/--no-time",
    "timed",
    default=None,
    help="With --forecast: run a few tokens to tell seconds.  [default: if the model is small]",
)
@click.option("--resume", is_flag=True, help="Go on with a training that was broken off.")
@click.option("--force", is_flag=True, help="Begin a training anew that was broken off.")
@click.option("--processes", type=click.IntRange(1, 1024), default=1, help="On this machine.")
@click.option(
    "--engine",
    type=click.Choice(["ddp", "fsdp", "deepspeed"]),
    help="That joins the processes.  [default: ddp, or what accelerate's configuration says]",
)
@click.option("--accelerate", type=PATH, help="A configuration of accelerate, to start with.")
@click.option(
    "--log-to",
    type=click.Choice(["tensorboard", "trackio", "wandb"]),
    multiple=True,
    help="Beside metrics.jsonl.",
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
    """Go on training a built model as the section `cpt` of its recipe says.

    RECIPE's model lies in out/NAME, or under --built; DIR is a model that hybridize built, which
    has its recipe in it. Also started by torchrun or accelerate launch: torchrun ... -m hybridize
    cpt RECIPE.
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
    trained = command.run(recipe, offline=offline, **options)
    if trained is not None:
        show_json(command.as_dict(trained)) if as_json else show(command.trained_table(trained))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _end(0)


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
