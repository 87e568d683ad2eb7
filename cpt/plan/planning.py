"""A training, planned: recipe, model, stages, and how rows are shared out. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from hybridize.cpt.plan.model_tensors import ModelTensors, read_model_tensors
from hybridize.cpt.plan.stages import Stage, micro_batch_size_of, plan_stages
from hybridize.errors import HybridizeError
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.cpt import CptSpec

EVALUATED = 1_024, 65_536  # tokens of a source, at least and at most, where the recipe names none
BETWEEN = 512  # tokens of a source that are looked at in between, at least


@dataclass(frozen=True)
class CptPlan:
    """All that is known before anything is loaded.

    Attributes:
        micro_batch_size: rows that a process runs at a time.
    """

    recipe: RecipeFile
    spec: CptSpec
    stack: ModelTensors
    stages: tuple[Stage, ...]
    processes: int
    micro_batch_size: int

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def accumulation(self) -> int:
        """Batches of each process that make one step."""
        return self.spec.batch // (self.micro_batch_size * self.processes)

    @property
    def evaluate_tokens(self) -> int:
        """Of held-out text of a source, before the training and after each stage; 0: none."""
        if self.spec.evaluate_tokens is not None:
            return self.spec.evaluate_tokens
        least, most = EVALUATED
        return min(most, max(least, self.spec.tokens // 20))

    @property
    def between_tokens(self) -> int:
        """Of held-out text of a source, while the training runs."""
        return min(self.evaluate_tokens, max(BETWEEN, self.evaluate_tokens // 8))

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations: with four times the tokens that one reads of a source, and
        at least one half-way."""
        cheap = math.ceil(4 * self.between_tokens / (self.spec.batch * self.spec.length))
        often = max(cheap, math.ceil(self.steps / 10))
        return self.spec.evaluate_every or max(1, min(often, math.ceil(self.steps / 2)))

    def check_engine(self, engine: str) -> None:
        """See that the engine can do what the recipe asks for.

        Raises:
            HybridizeError: a prefix is to be cached of a model that no process has whole.
        """
        if self.spec.cache_prefix is not True:
            return
        place = self.recipe.place("cpt", "cache_prefix")
        if engine in ("fsdp", "deepspeed"):
            raise HybridizeError(
                f"a frozen prefix is cached where a process has the whole model; {engine} parts it",
                fix="write cache_prefix: false, or train by ddp",
                place=place,
            )
        for i, stage in enumerate(self.stages):
            lowest = stage.policy.trained[0].name
            if stage.policy.first_trained[0] < 1:
                raise HybridizeError(
                    f"stage {i} has no frozen prefix to cache: {lowest} learns",
                    fix="write cache_prefix: auto",
                    place=place,
                )


def plan_training(recipe: RecipeFile, folder: Path, *, processes: int = 1) -> CptPlan:
    """Plan the training of a built model.

    Raises:
        HybridizeError: there is no model, or the section `cpt` asks for what cannot be.
    """
    stack = read_model_tensors(folder)
    return CptPlan(
        recipe=recipe,
        spec=recipe.recipe.cpt or CptSpec(),
        stack=stack,
        stages=tuple(plan_stages(recipe, stack)),
        processes=processes,
        micro_batch_size=micro_batch_size_of(recipe, processes),
    )
