"""Stages of a training, from recipe and headers: what learns, and for how long. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hybridize.assembler.donors import positions_of
from hybridize.cpt.policy import Policy, resolve
from hybridize.cpt.stack import Stack
from hybridize.errors import HybridizeError
from hybridize.recipe import RecipeFile
from hybridize.recipe_sections import CptSpec


@dataclass(frozen=True)
class Stage:
    """One part of a training: what learns, and for how many steps."""

    policy: Policy
    steps: int


def plan_stages(recipe: RecipeFile, stack: Stack) -> list[Stage]:
    """Policies and steps of all stages, before anything is loaded.

    Raises:
        HybridizeError: entries of `train` that name nothing, or are wrong.
    """
    spec = recipe.recipe.cpt or CptSpec()
    _check_length(recipe, stack, spec.length)
    steps = math.ceil(spec.tokens / (spec.batch * spec.length))
    if not spec.stages:
        place = _places(recipe, "cpt", "train")
        return [Stage(resolve(stack, spec.train, place=place), steps)]
    total = sum(stage.share for stage in spec.stages)
    if abs(total - 1) > 1e-6:
        raise HybridizeError(
            f"the shares of the stages add up to {total:g}",
            fix="let them add up to 1",
            place=recipe.place("cpt", "stages"),
        )
    return [
        Stage(
            resolve(stack, stage.train, place=_places(recipe, "cpt", "stages", i, "train")),
            max(1, round(stage.share * steps)),
        )
        for i, stage in enumerate(spec.stages)
    ]


def _places(recipe: RecipeFile, *where: str | int) -> Callable[[int], str]:
    return lambda i: recipe.place(*where, i)


def _check_length(recipe: RecipeFile, stack: Stack, length: int) -> None:
    """Rows no longer than every donor can read."""
    configs = stack.config.get("donors", {"the model": stack.config})
    limits = {n: limit for n, c in configs.items() if (limit := positions_of(c)) is not None}
    shortest = min(limits, key=lambda name: limits[name], default=None)
    if shortest is not None and length > limits[shortest]:
        raise HybridizeError(
            f"rows of {length} tokens are longer than {shortest} reads: {limits[shortest]}",
            fix=f"write length: {limits[shortest]}, or less, under cpt",
            place=recipe.place("cpt", "length"),
        )
