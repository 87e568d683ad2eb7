"""One stage of a training: the model opened, let learn, trained, checked, measured (torch side)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments

from hybridize.console import say
from hybridize.cpt.backends import engines, processes
from hybridize.cpt.data.blocks import mixture
from hybridize.cpt.data.prefix import Prefix
from hybridize.cpt.data.rows import Order, Rows, batch_of
from hybridize.cpt.data.text import Source
from hybridize.cpt.plan.planning import CptPlan
from hybridize.cpt.plan.rates import rate_lines
from hybridize.cpt.plan.saving import SaveClock
from hybridize.cpt.plan.stages import Stage
from hybridize.cpt.state import checkpoints
from hybridize.cpt.state.identity import Identity
from hybridize.cpt.state.metrics import FILE as METRICS
from hybridize.cpt.state.metrics import Metrics, Told
from hybridize.cpt.state.tensors import State
from hybridize.cpt.train.arguments import training_arguments
from hybridize.cpt.train.dropout import Dropout
from hybridize.cpt.train.evaluation import Losses, label, losses, old_losses
from hybridize.cpt.train.forward import (
    Forward,
    checkpoint_slots,
    compile_slots,
    narrow_norms,
    share_masks,
)
from hybridize.cpt.train.guards import FirstStep, Guards
from hybridize.cpt.train.options import RunOptions
from hybridize.cpt.train.trainable_model import (
    check_frozen,
    frozen_hashes,
    let_learn,
    open_model,
    put,
    round_as_stored,
    trained_state,
)
from hybridize.cpt.train.trainer import CptTrainer, Wanted
from hybridize.errors import CheckFailed
from hybridize.files.hashes import content_hash
from hybridize.files.publishing import publish
from hybridize.machine import ranks

DONE, RESULT, START = "done.safetensors", "done.json", "start.json"


@dataclass(frozen=True)
class StageResult:
    """What has come of a stage.

    Attributes:
        file: holds what it has trained, in fp32, by name in memory; `blake3`: its hash.
        losses: on all held-out rows, of what it has trained as that will be stored.
        frozen: tensors that were seen to be bit for bit what they were.
        averaged: steps of the checkpoints whose mean it is, if of more than one.
        losses_of_last: without that mean.
    """

    file: Path
    blake3: str
    losses: Losses
    frozen: int
    engine: str
    averaged: list[int]
    losses_of_last: Losses | None
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {n: value for n, value in asdict(self).items() if n not in ("file", "blake3")}


@dataclass(frozen=True)
class Before:
    """Losses before the training: on all held-out rows, and on those looked at in between."""

    whole: Losses
    between: Losses


@dataclass(frozen=True)
class TrainingRun:
    """What the stages of a training share."""

    plan: CptPlan
    sources: list[Source]
    work: Path
    options: RunOptions
    identity: Identity
    packed: bool

    @cached_property
    def order(self) -> Order:
        """Row of which source comes when, over all stages."""
        spec = self.plan.spec
        sizes = [len(source.train) for source in self.sources]
        shares = [source.share for source in self.sources]
        return mixture(sizes, shares, self.plan.steps * spec.batch, seed=spec.seed)

    @property
    def predicted(self) -> int:
        """Tokens, in all rows that come."""
        of_rows = [source.train.targets for source in self.sources]
        drawn = (self.order[self.order[:, 0] == i, 1] for i in range(len(of_rows)))
        return sum(int(of[rows].sum()) for of, rows in zip(of_rows, drawn, strict=True))

    def first(self, index: int) -> int:
        """Number of a stage's first row."""
        return sum(stage.steps for stage in self.plan.stages[:index]) * self.plan.spec.batch

    def part(self, index: int) -> Order:
        """Rows of one stage."""
        rows = self.plan.stages[index].steps * self.plan.spec.batch
        return self.order[self.first(index) : self.first(index) + rows]

    def before(self) -> Before:
        """Losses that were measured before the first step."""
        return Before(**json.loads((self.work / START).read_text()))

    def folder(self, index: int) -> Path:
        return self.work / f"stage-{index}"


def run_stage(run: TrainingRun, index: int, stage: Stage, learnt: State, tell: Told) -> StageResult:
    """Train one stage, or take up what has come of it before.

    Args:
        learnt: what earlier stages have trained.

    Raises:
        CheckFailed: see `training.run_training`.
    """
    folder = run.folder(index)
    if (folder / RESULT).is_file():
        result = StageResult(file=folder / DONE, **json.loads((folder / RESULT).read_text()))
        if not result.file.is_file() or content_hash(result.file) != result.blake3:
            raise CheckFailed(
                "what this stage has trained is not what was written",
                fix="start over with --force",
                place=str(result.file),
            )
        return result
    return _Stage(run, index, stage, learnt, tell).run()


class _Stage:
    """A stage at work."""

    def __init__(
        self, run: TrainingRun, index: int, stage: Stage, learnt: State, tell: Told
    ) -> None:
        self.shared, self.index, self.stage = run, index, stage
        self.folder = run.folder(index)
        if ranks.is_main():
            self.folder.mkdir(exist_ok=True)
        processes.barrier()
        options, spec = run.options, run.plan.spec
        # Sharded models are put onto their devices part by part.
        self.tuned = open_model(
            run.plan.stack.folder, "cpu" if options.engine == engines.FSDP else options.device
        )
        self.model: Any = self.tuned.model
        let_learn(self.tuned, stage.policy)
        put(self.model, learnt)
        self.frozen = frozen_hashes(self.model)
        first = stage.policy.first_trained_slot
        self.forward = Forward(self.tuned, start=first, dropout=self._dropout())
        self.model.forward = self.forward
        narrow_norms(self.tuned)
        share_masks()
        if spec.gradient_checkpointing:
            checkpoint_slots(self.tuned.model, first)
        if spec.compile:
            compile_slots(self.tuned.model)
        self.guards = Guards(spec.guards, self.folder)
        self.metrics = Metrics(run.work / METRICS, index, tell)
        self.prefix = self._prefix()
        self.trainer = self._trainer()

    def run(self) -> StageResult:
        checkpoint = processes.by_main(
            lambda: checkpoints.newest_whole(self.folder, self.shared.identity)
        )
        if self.shared.options.resume and ranks.is_main():
            where = f"from {checkpoint.name}" if checkpoint else "from its beginning"
            say(f"stage {self.index} goes on {where}")
        self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        check_frozen(self.model, self.frozen, str(self.folder))
        return self._finish()

    # ---- Making ready --------------------------------------------------------------------------

    def _trainer(self) -> CptTrainer:
        run, spec = self.shared, self.shared.plan.spec
        arguments: TrainingArguments = training_arguments(
            run.plan, self.stage, self.folder, run.options, index=self.index
        )
        rows = Rows(
            [source.train for source in run.sources],
            run.part(self.index),
            packed=run.packed,
            first=run.first(self.index),
            prefix=self.prefix,
        )
        wanted = Wanted(
            identity=run.identity,
            stage=self.index,
            sources=[label(source) for source in run.sources],
            roles=self.tuned.names.roles(self.stage.policy),
            rates={str(role): rate.value for role, rate in self.stage.rates.items()},
            events=self,
            evaluate_every=run.plan.evaluate_every,
            engine=run.options.engine,
            save=SaveClock(spec.save_every),
            keep=max(2, spec.average),
        )
        return CptTrainer(
            self.model, arguments, rows, wanted, [FirstStep(run.options.engine), self.metrics]
        )

    def _dropout(self) -> Dropout | None:
        spec = self.shared.plan.spec
        if not spec.dropout:
            return None
        return Dropout(spec.dropout, self.stage.learning_slots, spec.seed, spec.length)

    def _prefix(self) -> Prefix | None:
        """What arrives at the first part that learns, where it is to be kept."""
        run, wanted = self.shared, self.shared.plan.spec.cache_prefix
        order = run.part(self.index)
        if wanted == "auto":
            wanted = self.stage.bridges_alone and run.options.engine in (
                engines.SINGLE,
                engines.DDP,
            )
            wanted = wanted and ranks.one_machine()
            wanted = (
                wanted and self.forward.start > 0 and len(order) > len(np.unique(order, axis=0))
            )
        if not wanted:
            return None
        prefix = Prefix(self.folder / "prefix", order)
        blocks = [source.train for source in run.sources]

        def below(rows: Order) -> torch.Tensor:
            batch = batch_of(blocks, rows, packed=run.packed)
            device = self.model.device
            given = {n: value.to(device) for n, value in batch.items() if n != "labels"}
            return self.forward.below(**given)

        with processes.progress("running the frozen prefix", "rows") as tell:
            prefix.fill(below, run.plan.micro_batch_size, tell)
        return prefix

    # ---- While it runs -------------------------------------------------------------------------

    def begin(self, model: nn.Module, in_use: engines.InUse, step: int) -> None:
        """Losses are measured once before the first step, whatever is broken off."""
        run = self.shared
        if ranks.is_main() and (self.index == 0 or run.options.resume):
            say(f"engine: {in_use}")
        if ranks.is_main():
            for line in rate_lines(self.stage.rates):
                say(line)
        file = run.work / START
        if not processes.agreed(file.is_file()):
            whole = self._losses(model)
            between = self._losses(model, most=run.plan.between_tokens)
            if ranks.is_main():
                publish(file, json.dumps({"whole": whole, "between": between}, indent=1))
            processes.barrier()
        self.guards.recall(processes.by_main(lambda: self.metrics.losses(step)))
        if step and step % run.plan.evaluate_every == 0 and step < self.stage.steps:
            # A training that was stopped here for what it forgot is so again.
            found = self._losses(model, most=run.plan.between_tokens)
            self._check_old(found, run.before().between, step)

    def _losses(self, model: nn.Module, most: int | None = None) -> Losses:
        run = self.shared
        most = run.plan.evaluate_tokens if most is None else most
        micro_batch = run.plan.micro_batch_size
        return losses(model, run.sources, packed=run.packed, micro_batch=micro_batch, most=most)

    def before_update(self, losses: Mapping[str, float], norm: Any, step: int) -> None:
        self.guards.check_step(losses["loss"], norm, step)

    def evaluate(self, model: nn.Module, step: int) -> None:
        found = self._losses(model, most=self.shared.plan.between_tokens)
        self._look(found, self.shared.before().between, step)

    def _look(self, found: Losses, before: Losses, step: int) -> None:
        if found:
            self.trainer.log({f"held_out/{name}": loss for name, loss in found.items()})
        self._check_old(found, before, step)

    def _check_old(self, found: Losses, before: Losses, step: int) -> None:
        sources = self.shared.sources
        self.guards.check_old(old_losses(found, sources), old_losses(before, sources), step)

    # ---- What has come of it -------------------------------------------------------------------

    def _finish(self) -> StageResult:
        state = trained_state(self.model)
        averaged, of_last = self._average(state)
        if not averaged:
            processes.by_main(lambda: self._keep(state))
        round_as_stored(self.tuned)
        found = self._losses(self.model)
        self._look(found, self.shared.before().whole, self.stage.steps)
        assert self.trainer.in_use is not None
        result = StageResult(
            file=self.folder / DONE,
            blake3=processes.by_main(lambda: content_hash(self.folder / DONE)),
            losses=found,
            frozen=len(self.frozen),
            engine=str(self.trainer.in_use),
            averaged=averaged,
            losses_of_last=of_last,
            warnings=self.guards.warnings,
        )
        processes.by_main(lambda: self._write_result(result))
        return result

    def _average(self, state: State) -> tuple[list[int], Losses | None]:
        """Put the mean of the last checkpoints and of the end in its place, if one is asked for.

        Returns:
            Steps of the checkpoints, and the losses without the mean.
        """
        spec, last = self.shared.plan.spec, self.stage.steps
        if spec.average == 1:
            return [], None
        every = SaveClock(spec.save_every)
        earlier = [
            checkpoint
            for checkpoint in checkpoints.checkpoints(self.folder)
            if (step := checkpoints.step_of(checkpoint)) < last and every.is_due(step)
        ]
        chosen = earlier[: spec.average - 1]
        round_as_stored(self.tuned)
        of_last = self._losses(self.model)
        files = [folder / checkpoints.TRAINED for folder in chosen]
        processes.by_main(lambda: self._keep(checkpoints.mean(files, state)))
        put(self.model, load_file(self.folder / DONE))
        return sorted([last, *map(checkpoints.step_of, chosen)]), of_last

    def _keep(self, state: State) -> None:
        """What was trained; it counts once a result lies beside it."""
        checkpoints.write_tensors(state, self.folder / DONE)

    def _write_result(self, result: StageResult) -> None:
        noted = {name: value for name, value in asdict(result).items() if name != "file"}
        publish(self.folder / RESULT, json.dumps(noted, indent=1))
        for checkpoint in checkpoints.checkpoints(self.folder):
            shutil.rmtree(checkpoint)
        if self.prefix is not None:
            self.prefix.remove()
