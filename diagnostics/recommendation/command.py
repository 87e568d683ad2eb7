"""The command `recommend`: from a recipe to a recommended one (torch side)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridize.diagnostics.measure.budget import BUDGET
from hybridize.diagnostics.recommendation.outcome import comments, reasons
from hybridize.diagnostics.recommendation.prior.recipe_writing import recipe_yaml
from hybridize.diagnostics.recommendation.trial.recommending import Recommendation, find_placements
from hybridize.diagnostics.subject.target import Options, with_options
from hybridize.errors import HybridizeError
from hybridize.files.publishing import check_writable, publish
from hybridize.machine.device import use_device
from hybridize.machine.precision import AUTO
from hybridize.recipe.file import load_recipe
from hybridize.recipe.sections.fields import parse_size, parse_time


def recommend(
    recipe: Path | str,
    *,
    write: Path | None = None,
    force: bool = False,
    text: Sequence[str] = (),
    seeds: int | None = None,
    tokens: int | None = None,
    perturbed: int | None = None,
    budget: str | None = None,
    layer_by_layer: bool = False,
    device: str = "auto",
    compute_dtype: str = AUTO,
    memory: str | None = None,
    offline: bool = False,
) -> tuple[Recommendation, Path | None]:
    """Recommend placements; the file that the chosen one was written to, if it was.

    Raises:
        HybridizeError: what was asked for cannot be found, read or run, or the file is in the way.
    """
    if write is not None and write.exists() and not force:
        raise HybridizeError(
            "is there already", fix="choose another name, or add --force", place=str(write)
        )
    if write is not None:
        check_writable(write.parent)
    options = Options(text=text, seeds=seeds, tokens=tokens, perturbed=perturbed)
    wanted = with_options(load_recipe(recipe), options)
    where = use_device(device)
    found = find_placements(
        wanted,
        device=where,
        streamed=layer_by_layer,
        memory=parse_size(memory, "--memory") if memory else None,
        compute=compute_dtype,
        budget=BUDGET if budget is None else parse_time(budget, "--budget"),
        offline=offline,
    )
    if write is None or found.chosen is None:
        return found, None
    placement = found.chosen.placement
    content = recipe_yaml(
        wanted,
        placement.runs,
        folder=write.parent,
        head=comments(found),
        reasons=reasons(found, placement),
    )
    publish(write, content)
    return found, write
