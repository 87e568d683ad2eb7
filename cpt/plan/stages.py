"""Stages of a training, from recipe and headers: what learns, and for how long. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.cpt.plan.model_tensors import ModelTensors, Role
from hybridize.cpt.plan.policy import Entry, Policy, Prior, auto, resolve
from hybridize.cpt.plan.rates import Rate, rates_of
from hybridize.errors import Finding, HybridizeError
from hybridize.model.donors import positions_of
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.cpt import AUTO, CptSpec

TRACE = "trace.json"


@dataclass(frozen=True)
class Stage:
    """One part of a training.

    Attributes:
        rates: highest learning rate of each role that learns, and why.
        prior: the reason of what `auto` has named: a rule of thumb, nothing measured here.
    """

    policy: Policy
    steps: int
    rates: Mapping[Role, Rate]
    prior: str | None = None

    @property
    def bridges_alone(self) -> bool:
        return {tensor.role for tensor in self.policy.trained} == {"bridge"}

    @property
    def learning_slots(self) -> frozenset[int]:
        """Slots of which anything learns, bridges in them aside."""
        trained = (tensor for tensor in self.policy.trained if tensor.role == "slot")
        return frozenset(tensor.slot for tensor in trained if tensor.slot is not None)

    def as_dict(self) -> dict[str, Any]:
        rates = {role: vars(rate) for role, rate in self.rates.items()}
        return {"steps": self.steps, "rates": rates, "prior": self.prior, **self.policy.as_dict()}


def plan_stages(recipe: RecipeFile, stack: ModelTensors) -> list[Stage]:
    """Policies and steps of all stages, before anything is loaded.

    Raises:
        HybridizeError: entries of `train` that name nothing, or are wrong; rows that are too long;
            rates or dropout for what never learns; fewer checkpoints than are to be averaged.
    """
    spec = recipe.recipe.cpt or CptSpec()
    _check_length(recipe, stack, spec.length)
    steps = math.ceil(spec.tokens / (spec.batch * spec.length))
    if spec.stages:
        _check_shares(recipe, spec)
        stages = [
            _stage(recipe, stack, s.train, max(1, round(s.share * steps)), "stages", i, "train")
            for i, s in enumerate(spec.stages)
        ]
    else:
        stages = [_stage(recipe, stack, spec.train, steps, "train")]
    _check_rates(recipe, spec, stages)
    _check_average(recipe, spec, stages)
    _check_dropout(recipe, spec, stages)
    _check_guards(recipe, spec)
    return stages


def _stage(
    recipe: RecipeFile, stack: ModelTensors, train: Sequence[Entry], steps: int, *where: str | int
) -> Stage:
    def place(i: int) -> str:
        return recipe.place("cpt", *where, origins[i])

    entries: list[Entry] = []
    origins: list[int] = []  # which entry of the recipe each came from
    reasons = []
    for i, entry in enumerate(train):
        named: Sequence[Entry] = [entry]
        if entry == AUTO or (isinstance(entry, dict) and set(entry) == {AUTO}):
            prior = _prior(recipe, stack, entry, recipe.place("cpt", *where, i))
            named = prior.entries
            reasons.append(prior.reason)
        entries += named
        origins += [i] * len(named)
    policy = resolve(stack, entries, place=place if origins else None)
    spec = recipe.recipe.cpt or CptSpec()
    return Stage(policy, steps, rates_of(policy, spec), "; ".join(reasons) or None)


def _prior(recipe: RecipeFile, stack: ModelTensors, entry: Entry, place: str) -> Prior:
    """What `auto` stands for: bridges and the slots below the boundary of a trace."""
    named = entry[AUTO] if isinstance(entry, dict) else None
    file = recipe.path(str(named)) if named else Path("out") / "diagnosis" / recipe.name / TRACE
    try:
        trace = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "is not JSON" if isinstance(error, ValueError) else "is not there"
        raise HybridizeError(
            f"auto goes by a diagnosis of the model, and {file} {reason}",
            fix="make one: hybridize diagnose RECIPE; or name it: {auto: TRACE.json}",
            place=place,
        ) from None
    try:
        return auto(trace, stack)
    except HybridizeError as error:
        raise HybridizeError.of(
            Finding(finding.found, finding.fix, place) for finding in error.findings
        ) from None


def _check_shares(recipe: RecipeFile, spec: CptSpec) -> None:
    total = sum(stage.share for stage in spec.stages)
    if abs(total - 1) > 1e-6:
        raise HybridizeError(
            f"the shares of the stages add up to {total:g}",
            fix="let them add up to 1",
            place=recipe.place("cpt", "stages"),
        )


def _check_rates(recipe: RecipeFile, spec: CptSpec, stages: Sequence[Stage]) -> None:
    learns = sorted({tensor.role for stage in stages for tensor in stage.policy.trained})
    if idle := [role for role in spec.learning_rates if role not in learns]:
        raise HybridizeError.of(
            Finding(
                f"a learning rate for '{role}', and nothing of that role learns",
                f"remove it, or let it learn; what learns is of the roles: {', '.join(learns)}",
                recipe.place("cpt", "learning_rates", role),
            )
            for role in idle
        )


def _check_average(recipe: RecipeFile, spec: CptSpec, stages: Sequence[Stage]) -> None:
    """The end of a stage is one of its checkpoints, whether `save_every` comes out there or not."""
    for i, stage in enumerate(stages):
        if isinstance(spec.save_every, str):
            if spec.average == 1:
                return
            raise HybridizeError(
                f"{spec.average} checkpoints are to be averaged, and save_every is a time",
                fix=f"write save_every: {max(1, stage.steps // spec.average)}, in steps",
                place=recipe.place("cpt", "average"),
            )
        there = math.ceil(stage.steps / spec.save_every)
        if there < spec.average:
            raise HybridizeError(
                f"stage {i} has {stage.steps} steps and makes {there} checkpoints, "
                f"{spec.average} are to be averaged",
                fix=f"write save_every: {max(1, stage.steps // spec.average)}, or average less",
                place=recipe.place("cpt", "average"),
            )


def _check_dropout(recipe: RecipeFile, spec: CptSpec, stages: Sequence[Stage]) -> None:
    if spec.dropout and not any(stage.learning_slots for stage in stages):
        raise HybridizeError(
            "dropout is for slots that learn, and none does",
            fix="remove dropout, or let slots learn: {shallow: 0.25}, say",
            place=recipe.place("cpt", "dropout"),
        )


def _check_guards(recipe: RecipeFile, spec: CptSpec) -> None:
    if spec.evaluate_tokens == 0 and spec.guards.then == "stop":
        raise HybridizeError(
            "a rise of the loss on old text is to stop the training, and nothing is measured",
            fix="remove evaluate_tokens: 0, or write then: warn",
            place=recipe.place("cpt", "evaluate_tokens"),
        )


def micro_batch_size_of(recipe: RecipeFile, processes: int) -> int:
    """Rows that a process runs at a time.

    Raises:
        HybridizeError: the rows of a step cannot be shared out so.
    """
    spec = recipe.recipe.cpt or CptSpec()
    micro_batch_size = spec.micro_batch_size or max(1, spec.batch // processes)
    turn = micro_batch_size * processes
    if spec.batch % turn:
        raise HybridizeError(
            f"a step of {spec.batch} rows cannot be shared out: {processes} "
            f"process{'es' * (processes > 1)}, {micro_batch_size} rows at once on each",
            fix=f"write batch: {math.ceil(spec.batch / turn) * turn}",
            place=recipe.place("cpt", "micro_batch_size" if spec.micro_batch_size else "batch"),
        )
    return micro_batch_size


def _check_length(recipe: RecipeFile, stack: ModelTensors, length: int) -> None:
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
