"""The command `cpt`: from a recipe and its built model to a trained one, or a forecast."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.console import duration, size
from hybridize.cpt.plan.planning import CptPlan, plan_training
from hybridize.cpt.plan.policy_words import policy_table, tensor_list
from hybridize.cpt.plan.rates import rate_lines
from hybridize.cpt.plan.stages import Stage
from hybridize.cpt.plan.target import find_target
from hybridize.errors import HybridizeError
from hybridize.files.hashes import content_hash
from hybridize.files.staging import MANIFEST
from hybridize.machine import ranks

if TYPE_CHECKING:
    from hybridize.cpt.plan.forecast import Forecast
    from hybridize.cpt.train.timing import Timing
    from hybridize.cpt.train.training import Trained
    from hybridize.recipe.file import RecipeFile

QUICK = 2_000_000_000  # bytes of a model that a forecast reads without being asked to


def train(
    named: Path | str,
    *,
    built: Path | None = None,
    out: Path | None = None,
    text: Sequence[str] = (),
    old: Sequence[str] = (),
    tokens: int | None = None,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
    engine: str | None = None,
    log_to: Sequence[str] = (),
    offline: bool = False,
) -> Trained | None:
    """Train; see the command's help. Of several processes the main one alone gets the result."""
    from hybridize.cpt.backends import engines
    from hybridize.cpt.data.text import check_text
    from hybridize.cpt.train.arguments import check_loggers
    from hybridize.cpt.train.options import RunOptions
    from hybridize.cpt.train.training import run_training
    from hybridize.machine.device import use_device
    from hybridize.machine.lifeline import end_with_parent

    if ranks.processes() > 1:
        end_with_parent(os.getppid())  # a launcher that is killed leaves none behind
    target = find_target(Path(named), built=built, out=out, text=text, old=old, tokens=tokens)
    check_text(target.recipe)
    check_loggers(log_to)
    chosen = engines.asked_engine(engine)
    plan = plan_training(target.recipe, target.folder, processes=ranks.processes())
    plan.check_engine(chosen)
    options = RunOptions(
        device=use_device(device),
        engine=chosen,
        report_to=log_to,
        logs=target.out.with_name(f"{target.out.name}.logs"),
        resume=resume,
        force=force,
        offline=offline,
    )
    trained = run_training(plan, target.out, options)
    return trained if ranks.is_main() else None


@dataclass(frozen=True)
class Forecasts:
    """What each stage of a training trains, and costs."""

    plan: CptPlan
    stages: list[tuple[Stage, Forecast]]
    timings: list[Timing]  # of the stages; empty where nothing was timed

    def table(self, *, listed: bool = False) -> RenderableType:
        """Args: listed: every tensor that learns, with its shape and bytes."""
        shown: list[RenderableType] = []
        for i, (stage, costs) in enumerate(self.stages):
            title = f"stage {i}: {stage.steps:,} steps" if len(self.stages) > 1 else ""
            shown += [*([Text(title, style="bold")] if title else []), policy_table(stage.policy)]
            if stage.prior:
                shown.append(Text(stage.prior))
            shown.append(Text("\n".join(rate_lines(stage.rates))))
            shown += [Text(), *([tensor_list(stage.policy), Text()] if listed else [])]
            shown += [costs.table(), Text()]
        return Group(*shown, Text("\n".join(self._time())))

    def _time(self) -> list[str]:
        """Seconds of the whole training, and memory with what Python takes."""
        if not self.timings:
            return ["time: not measured; --time measures it, and reads the model for it"]
        time = self.seconds
        words = ", ".join(f"{name} {duration(time[name])}" for name in list(time)[:-1])
        most = max(costs.memory.total for _, costs in self.stages)
        imports = max(timing.imports for timing in self.timings)
        return [
            f"time: about {duration(time['total'])} on one process: {words}; measured now on a few "
            "tokens; starting Python, reading the text and writing the model come on top",
            *(
                [
                    f"memory of the process: about {size(most + imports)}, of which Python and its "
                    f"libraries take {size(imports)}"
                ]
                if imports
                else []
            ),
        ]

    @property
    def seconds(self) -> dict[str, float]:
        """Of the whole training, by what takes them."""
        pairs = [
            (stage, timing) for (stage, _), timing in zip(self.stages, self.timings, strict=True)
        ]
        found = {
            "training": sum(timing.training(self.plan, stage) for stage, timing in pairs),
            "evaluation": sum(timing.evaluation(self.plan, stage) for stage, timing in pairs),
            "opening and checking": sum(timing.ready for _, timing in pairs),
        }
        return {**found, "total": sum(found.values())}

    def as_dict(self) -> dict[str, Any]:
        stages = [
            {
                "steps": stage.steps,
                "prior": stage.prior,
                "rates": {role: vars(rate) for role, rate in stage.rates.items()},
                "policy": stage.policy.as_dict(),
                "costs": costs.as_dict(),
            }
            for stage, costs in self.stages
        ]
        if not self.timings:
            return {"stages": stages, "seconds": None}
        imports = max(timing.imports for timing in self.timings)
        return {"stages": stages, "seconds": self.seconds, "imports_bytes": imports}


def forecast(
    named: Path | str,
    *,
    built: Path | None = None,
    text: Sequence[str] = (),
    old: Sequence[str] = (),
    tokens: int | None = None,
    processes: int = 1,
    engine: str | None = None,
    device: str = "auto",
    timed: bool | None = None,
) -> Forecasts:
    """What would learn and what it costs.

    Args:
        timed: measure seconds with the model itself. Default: if it is small; of a large one
            headers alone are read, without torch.
    """
    from hybridize.cpt.plan.forecast import forecast as costs_of
    from hybridize.cpt.plan.memory import head_positions

    target = find_target(Path(named), built=built, text=text, old=old, tokens=tokens)
    plan = plan_training(target.recipe, target.folder, processes=processes)
    spec = plan.spec
    if timed is None:
        timed = sum(tensor.nbytes for tensor in plan.stack.tensors) <= QUICK
    return Forecasts(
        plan,
        timings=_timings(plan, device) if timed else [],
        stages=[
            (
                stage,
                costs_of(
                    plan.stack,
                    stage.policy,
                    tokens=stage.steps * spec.batch * spec.length,
                    batch_tokens=spec.batch * spec.length,
                    length=spec.length,
                    processes=processes,
                    checkpointing=spec.gradient_checkpointing,
                    cached_prefix=spec.cache_prefix is True,
                    sharded=engine == "fsdp",
                    at_once=plan.micro_batch_size * spec.length,
                    head_tokens=head_positions(plan.stack.vocabulary),
                ),
            )
            for stage in plan.stages
        ],
    )


def rates_in_plan(recipe: RecipeFile) -> list[str]:
    """Learning rates of a recipe's training, of the model in out/NAME; none without a section."""
    if recipe.recipe.cpt is None:
        return []
    folder = Path("out") / recipe.name
    if not (folder / MANIFEST).is_file():
        return ["learning rates: by what learns; hybridize cpt --forecast shows them after build"]
    try:
        stages = plan_training(recipe, folder).stages
    except HybridizeError as error:  # the model there may be of another recipe: build says
        return [f"learning rates: not known of {folder}: {error.findings[0].found}"]
    return [
        f"stage {i}: {line}" if len(stages) > 1 else line
        for i, stage in enumerate(stages)
        for line in rate_lines(stage.rates)
    ]


def _timings(plan: CptPlan, device: str) -> list[Timing]:
    from hybridize.cpt.train.timing import time_stage
    from hybridize.machine.device import use_device

    return [time_stage(plan, stage, use_device(device)) for stage in plan.stages]


def trained_table(trained: Trained) -> RenderableType:
    """Losses before, after each stage and at the end, and what was checked."""
    record = trained.record
    stages = record["stages"]
    if not record["losses"]:
        return Text(
            "\n".join(["no losses on held-out text: evaluate_tokens is 0", *_lines(trained)])
        )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("held-out loss, nats per token")
    between = [f"after stage {i}" for i in range(len(stages) - 1)]
    for heading in ("before", *between, "after", "change"):
        table.add_column(heading, justify="right")
    for name, pair in record["losses"].items():
        row = [pair["before"], *(stage["losses"][name] for stage in stages)]
        change = pair["after"] - pair["before"]
        table.add_row(name, *(f"{loss:.3f}" for loss in row), f"{change:+.3f}")
    return Group(table, Text(), Text("\n".join(_lines(trained))))


def _lines(trained: Trained) -> list[str]:
    record = trained.record
    stages = record["stages"]
    moved = record["trained"] - len(record["unmoved"])
    lines = [
        f"trained {trained.folder}: {record['tokens']:,} tokens predicted, in "
        f"{sum(stage['steps'] for stage in stages):,} steps; {stages[-1]['engine']}",
        f"  checked: {record['frozen']:,} frozen tensors are bit for bit what they were, "
        f"{moved:,} of {record['trained']:,} trained ones have changed",
    ]
    lines.append(f"  manifest: {_manifest(trained)} (for verify --expect)")
    if record["unmoved"]:
        lines.append(f"  as they were, rounded as stored: {_some(record['unmoved'])}")
    for i, stage in enumerate(stages):
        if stage["prior"]:
            lines.append(f"  stage {i}: {stage['prior']}")
        if stage["averaged"]:
            last = "; ".join(f"{n} {loss:.3f}" for n, loss in stage["losses_of_last"].items())
            lines.append(
                f"  stage {i}: the mean of {len(stage['averaged'])} checkpoints, of steps "
                f"{_some(stage['averaged'])}; the last alone: {last}"
            )
    if not record["packed"]:
        lines.append("  one document a row: this model cannot tell packed documents apart")
    lines += [f"  warning: {text}" for text in record["warnings"]]
    return lines


def _manifest(trained: Trained) -> str:
    return content_hash(trained.folder / MANIFEST)


def _some(items: Sequence[Any]) -> str:
    more = f", ... ({len(items)})" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more


def as_dict(trained: Trained) -> dict[str, Any]:
    return {"folder": str(trained.folder), "manifest": _manifest(trained), **trained.record}
