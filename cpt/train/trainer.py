"""transformers' Trainer behind the steps and events of `step`, and the checkpoints of `state`.

This is the one module that knows Trainer's inside. `CHECKED` notes what its private methods were
when what overrides them was written; a test tells when a new version changes one.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hybridize.cpt.backends import engines, patches, processes
from hybridize.cpt.data.rows import Rows, collate
from hybridize.cpt.plan.saving import SaveClock
from hybridize.cpt.state import checkpoints
from hybridize.cpt.state.identity import Identity
from hybridize.cpt.train.step import Events, Step
from hybridize.cpt.train.trainable_model import put, trained_state
from hybridize.errors import HybridizeError
from hybridize.machine import ranks

OPTIMIZER_OF_DEEPSPEED = "deepspeed"

# What is overridden, and the start of the SHA-256 of its source in transformers 5.23.0.
CHECKED = {
    "_build_accelerator_args": "5288559459f11a4a",
    "_get_grad_norm": "913ba6f52f074d10",
    "_get_train_sampler": "1580d7493244e637",
    "_load_from_checkpoint": "a2804e8d93a297e3",
    "_load_optimizer_and_scheduler": "741032f57d6fb802",
    "_maybe_log_save_evaluate": "af101534f0f7b2d7",
    "_prepare_for_training": "f55950593d7e10c0",
    "_save_checkpoint": "a9111e30faa99339",
    "compute_loss": "160dea726d2f28bd",
    "create_accelerator_and_postprocess": "d649720bec7e782a",
    "create_optimizer": "c798977d9dca3601",
    "create_scheduler": "a9edec70a59bffa5",
    "log": "73b8e3acd21a7b73",
}


@dataclass(frozen=True)
class Wanted:
    """What a stage asks of its trainer.

    Attributes:
        identity: of the training, noted in each checkpoint; `stage`: which of its stages.
        sources: names of the sources, for losses.
        roles: name of a tensor that learns -> its role; `rates`: role -> learning rate.
        events: what the stage does around its steps; it evaluates each `evaluate_every` of them.
        save: says after which steps a checkpoint is written, besides the last; `keep`: how many
            stay.
    """

    identity: Identity
    stage: int
    sources: Sequence[str]
    roles: Mapping[str, str]
    rates: Mapping[str, float]
    events: Events
    evaluate_every: int
    engine: str
    save: SaveClock
    keep: int


class CptTrainer(Trainer):
    """Goes through its rows in their order."""

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        rows: Rows,
        wanted: Wanted,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.wanted = wanted
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=collate,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        # The loss is divided by the tokens of the whole step, on all processes.
        self.model_accepts_loss_kwargs = True
        self.in_use: engines.InUse | None = None
        self.step = Step(wanted.sources, wanted.events, wanted.save)
        self._told = -1  # the step that was evaluated last

    # ---- Setting out ---------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does; on processors FSDP must be asked for again."""
        if self.wanted.engine == engines.FSDP and self.args.device.type == "cpu":
            patches.fsdp_on_cpu()
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise HybridizeError(
                "DeepSpeed's third stage wants every pass to use parameters in one order, and "
                "evaluation has another than training",
                fix="its second stage, or --engine fsdp, which parts parameters too",
            )

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        found: dict[str, Any] = super()._build_accelerator_args(**kwargs)
        for handler in found.get("kwargs_handlers", []):
            if isinstance(handler, DistributedDataParallelKwargs):
                handler.gradient_as_bucket_view = True  # else each gradient is there twice
        return found

    def _prepare_for_training(self, max_steps: int, rows: Any, checkpoint: str | None) -> Any:
        prepare: Any = super()._prepare_for_training
        # transformers would look for a whole model in a checkpoint of DeepSpeed.
        prepared = prepare(max_steps, rows, None if self.is_deepspeed_enabled else checkpoint)
        if self.is_deepspeed_enabled:
            self._load_optimizer_and_scheduler(checkpoint)
        wrapped: Any = self.model_wrapped
        self.in_use = engines.engine_in_use(
            self.wanted.engine,
            wrapped,
            self.accelerator.distributed_type.name,
            self.accelerator.num_processes,
        )
        self.state.save_steps = int(self.args.save_steps)  # not those of the checkpoint
        tuned: Any = self.model
        self.wanted.events.begin(tuned, self.in_use, int(self.state.global_step))
        return prepared

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a rate for each role; gains and biases do not decay."""
        if self.optimizer is None:
            groups: dict[tuple[str, bool], list[Any]] = {}
            tuned: Any = model or self.model
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad:
                    role = self.wanted.roles[name]
                    groups.setdefault((role, parameter.ndim > 1), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {
                        "params": parameters,
                        "lr": self.wanted.rates[role],
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (role, decays), parameters in groups.items()
                ],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                fused=self.wanted.engine in (engines.SINGLE, engines.DDP),
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As transformers does, but for a warm-up whose first step has a rate of zero."""
        made: Any = super().create_scheduler(num_training_steps, optimizer)
        warmup = int(self.args.warmup_steps)

        def sooner(rate: Callable[[int], float]) -> Callable[[int], float]:
            return lambda step: rate(step + 1 if step < warmup else step)

        made.lr_lambdas = [sooner(rate) for rate in made.lr_lambdas]
        made._last_lr = [
            base * rate(0) for base, rate in zip(made.base_lrs, made.lr_lambdas, strict=True)
        ]
        _set_rates(made)
        return made

    # ---- A step --------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """See `Step.loss`."""
        loss, out = self.step.loss(model, inputs, num_items_in_batch)
        return (loss, out) if return_outputs else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The last place before the optimizer's turn: see `Step.check`."""
        norm_of: Any = super()._get_grad_norm
        norm = norm_of(model, grad_norm=grad_norm)
        try:
            self.step.check(norm, int(self.state.global_step), self.args.device)
        except Exception:
            self._save_before_the_step(model)
            raise
        return norm

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add what is known of each source; nothing is kept in the state, `metrics` writes it."""
        if "loss" in logs:
            logs |= self.step.losses
        super().log(logs, start_time)
        self.state.log_history.clear()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Evaluation comes first: who goes on from this step's checkpoint has had it."""
        before, self._told = self._told, int(self.state.global_step)
        due = self._told % self.wanted.evaluate_every == 0
        if due and before != self._told < int(self.state.max_steps):
            tuned: Any = self.model
            is_due = self.control.should_log  # what is logged here takes it away
            try:
                self.wanted.events.evaluate(tuned, self._told)
                self.control.should_log = is_due
            except Exception:
                self._save_before_the_step(args[2])
                raise
        self.control.should_save |= self.step.save_is_due
        self.step.save_is_due = False  # the end of an epoch comes by here, too
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # ---- Checkpoints ---------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where checkpoints go."""
        return Path(str(self.args.output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = int(self.state.global_step)
        name = f"{checkpoints.PREFIX}{step}"
        staged = checkpoints.staging(self.folder, name)
        if ranks.is_main():
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
        processes.barrier()
        tuned: Any = self.model
        state = trained_state(tuned)
        moments = self._moments(staged)
        processes.barrier()

        def write(folder: Path) -> None:
            file = folder / checkpoints.TRAINED
            checkpoints.save_state(state, file, place=self.folder, step=step)
            if moments:
                checkpoints.write_tensors(moments, folder / checkpoints.MOMENTS)
            schedule: Any = self.lr_scheduler
            content = io.BytesIO()  # torch says of a file only that it could not be written
            torch.save(schedule.state_dict(), content)
            (folder / "scheduler.pt").write_bytes(content.getvalue())
            self.state.save_to_json(str(folder / "trainer_state.json"))

        note = {"training": self.wanted.identity, "stage": self.wanted.stage, "step": step}
        processes.by_main(
            lambda: checkpoints.publish_checkpoint(
                self.folder, name, write, note, keep=self.wanted.keep
            )
        )
        self.wanted.save.saved()

    def _moments(self, staged: Path) -> dict[str, Tensor]:
        """The optimizer's state; DeepSpeed writes its own."""
        if self.is_deepspeed_enabled:
            wrapped: Any = self.model_wrapped
            place = str(staged / OPTIMIZER_OF_DEEPSPEED)
            wrapped.save_checkpoint(place, exclude_frozen_parameters=True)
            return {}
        tuned: Any = self.model
        optimizer: Any = self.optimizer
        return checkpoints.moments_of(optimizer, tuned)

    def _save_before_the_step(self, model: Any) -> None:
        """The state before the next step, if no checkpoint has it yet."""
        step = int(self.state.global_step)
        if step == 0 or (self.folder / f"{checkpoints.PREFIX}{step}").exists():
            return
        self._save_checkpoint(model, None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tuned: Any = self.model
        put(tuned, load_file(Path(resume_from_checkpoint) / checkpoints.TRAINED))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        tuned: Any = self.model
        by_deepspeed = (folder / OPTIMIZER_OF_DEEPSPEED).is_dir()
        if by_deepspeed != self.is_deepspeed_enabled:
            raise HybridizeError(
                f"this checkpoint was written {'by' if by_deepspeed else 'without'} DeepSpeed, "
                "which keeps the optimizer's state in a way of its own",
                fix="go on as the training began, or start over with --force",
                place=checkpoint,
            )
        if self.is_deepspeed_enabled:
            wrapped: Any = self.model_wrapped
            wrapped.load_checkpoint(str(folder / OPTIMIZER_OF_DEEPSPEED), load_module_strict=False)
        else:
            optimizer: Any = self.optimizer
            checkpoints.set_moments(optimizer, tuned, folder / checkpoints.MOMENTS)
        schedule: Any = self.lr_scheduler
        schedule.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))
        _set_rates(schedule)


def _set_rates(schedule: Any) -> None:
    """Give the optimizer the rates that its schedule stands at."""
    for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
