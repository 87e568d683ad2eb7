"""What transformers' Trainer is told, for one stage (torch side)."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hybridize.cpt.backends import engines, patches
from hybridize.cpt.plan.planning import CptPlan
from hybridize.cpt.plan.stages import Stage
from hybridize.cpt.train.options import RunOptions
from hybridize.errors import HybridizeError
from hybridize.machine import ranks

SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "cosine": ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    "wsd": ("warmup_stable_decay", {}),
    "constant": ("constant_with_warmup", {}),
}
DECAY = 0.1  # share of a stage's steps in which wsd decays
PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}


def training_arguments(
    plan: CptPlan, stage: Stage, folder: Path, options: RunOptions, *, index: int
) -> TrainingArguments:
    """Steps, rates and where things go.

    Args:
        index: of the stage.
    """
    spec = plan.spec
    schedule, shape = SCHEDULES[spec.schedule]
    if spec.schedule == "wsd":
        shape = {"num_decay_steps": math.ceil(DECAY * stage.steps)}
    if "tensorboard" in options.report_to:  # transformers asks for it in this way
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(options.logs / f"stage-{index}")
    found = TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=max(rate.value for rate in stage.rates.values()),
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs=shape,
        # A stage of one step is to learn in it.
        warmup_steps=min(round(spec.warmup_ratio * stage.steps), stage.steps - 1),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        save_steps=stage.steps,  # between them the trainer's own clock says when
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(options.report_to) or "none",
        run_name=f"{plan.recipe.name} stage {index}",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=engines.uses_cpu(options.engine, options.device),
        dataloader_pin_memory=options.device != "cpu",
        ddp_find_unused_parameters=False,
        seed=spec.seed + index,
        data_seed=spec.seed + index,
    )
    if options.engine == engines.DEEPSPEED and found.device.type == "cpu":
        patches.deepspeed_on_cpu()
    if ranks.processes() == 1 and found.device.type == "cuda":
        found._n_gpu = 1  # else Trainer spreads the rows over every GPU that it sees
    return found


def check_loggers(names: Sequence[str]) -> None:
    """See that the packages of Trainer's loggers are there.

    Raises:
        HybridizeError: they are not, all of them.
    """
    missing = [PACKAGES[name] for name in names if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        raise HybridizeError(
            f"not installed: {', '.join(missing)}", fix=f"pip install {' '.join(missing)}"
        )
