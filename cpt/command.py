"""The command `cpt`: from a recipe and its built model to a trained one, or a forecast."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.assembler.staging import MANIFEST
from hybridize.cpt.stack import read_stack
from hybridize.cpt.stages import Stage, plan_stages
from hybridize.errors import HybridizeError
from hybridize.recipe import load_recipe
from hybridize.recipe_sections import CptSpec

if TYPE_CHECKING:
    from hybridize.cpt.forecast import Forecast
    from hybridize.cpt.pretraining import Trained


def run(
    recipe: Path,
    *,
    built: Path | None,
    out: Path | None,
    resume: bool,
    force: bool,
    device: str,
    offline: bool,
) -> Trained:
    """Train; see the command's help."""
    from hybridize.assembler.machine import pick_device
    from hybridize.console import token_progress
    from hybridize.cpt.pretraining import train
    from hybridize.cpt.text import check_text

    read = load_recipe(recipe)
    check_text(read)
    folder = (built or Path("out") / read.name).absolute()
    target = (out or folder.with_name(f"{folder.name}-cpt")).absolute()
    _check_places(folder, target)
    stack = read_stack(folder)
    with token_progress("training", "steps") as progress:
        return train(
            read,
            stack,
            target,
            device=pick_device(device),
            resume=resume,
            force=force,
            offline=offline,
            tell=lambda done, total, _: progress(done, total),
        )


@dataclass(frozen=True)
class Forecasts:
    """What each stage of a training trains, and costs."""

    stages: list[tuple[Stage, Forecast]]

    def table(self) -> RenderableType:
        shown: list[RenderableType] = []
        for i, (stage, costs) in enumerate(self.stages):
            title = f"stage {i}: {stage.steps:,} steps" if len(self.stages) > 1 else ""
            shown += [*([Text(title, style="bold")] if title else []), stage.policy.table(), Text()]
            shown += [costs.table(), Text()]
        return Group(*shown[:-1])

    def as_dict(self) -> dict[str, Any]:
        stages = [
            {"steps": stage.steps, "policy": stage.policy.as_dict(), "costs": costs.as_dict()}
            for stage, costs in self.stages
        ]
        return {"stages": stages}


def forecast(recipe: Path, *, built: Path | None) -> Forecasts:
    """What would learn and what it costs; reads headers only, no torch."""
    from hybridize.cpt.forecast import forecast as costs_of

    read = load_recipe(recipe)
    spec = read.recipe.cpt or CptSpec()
    stages = plan_stages(read, read_stack(built or Path("out") / read.name))
    rows = spec.batch * spec.length
    return Forecasts(
        [
            (
                stage,
                costs_of(
                    stage.policy.stack,
                    stage.policy,
                    tokens=stage.steps * rows,
                    batch_tokens=rows,
                    length=spec.length,
                    head_tokens=rows,
                ),
            )
            for stage in stages
        ]
    )


def _check_places(base: Path, out: Path) -> None:
    """What can be seen before anything is read."""
    if base.is_dir() and not (base / MANIFEST).is_file():
        raise HybridizeError(
            f"hybridize did not build this: {MANIFEST} is missing",
            fix="build a recipe, and name its folder under --built",
            place=str(base),
        )
    if base.resolve() in out.resolve().parents:
        raise HybridizeError(
            "lies inside the model that is trained", fix="choose another --out", place=str(out)
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise HybridizeError(
            "training runs in one process so far", fix="start it without torchrun or accelerate"
        )


def trained_table(trained: Trained) -> RenderableType:
    """Losses before and after, and what was checked."""
    record = trained.record
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("held-out loss, nats per token")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for name, pair in record["losses"].items():
        change = pair["after"] - pair["before"]
        table.add_row(name, f"{pair['before']:.3f}", f"{pair['after']:.3f}", f"{change:+.3f}")
    lines = [
        f"trained {trained.folder}: {record['tokens']:,} tokens predicted, in "
        f"{len(record['stages'])} stages",
        f"  checked: {record['frozen']} frozen tensors are bit for bit what they were",
    ]
    if record["unmoved"]:
        lines.append(
            f"  {len(record['unmoved'])} trained tensors did not move, rounded as they are stored: "
            f"{', '.join(record['unmoved'][:3])}"
        )
    if not record["packed"]:
        lines.append("  one document a row: this model cannot tell packed documents apart")
    return Group(table, Text(), Text("\n".join(lines)))


def as_dict(trained: Trained) -> dict[str, Any]:
    return {"folder": str(trained.folder), **trained.record}
