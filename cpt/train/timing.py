"""Seconds and memory of a training, measured on a few tokens of it before it begins (torch side).

The model is opened and made to learn as a stage does it. What is timed is one pass forward and
backward over some rows, one step of the optimizer and one pass of an evaluation: text is not read.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridize.cpt.plan.planning import CptPlan
from hybridize.cpt.plan.stages import Stage
from hybridize.cpt.train.forward import Forward, checkpoint_slots, narrow_norms
from hybridize.cpt.train.trainable_model import frozen_hashes, let_learn, open_model
from hybridize.machine.timing import median_seconds

TOKENS = 512  # of the rows that are timed, at most
PATIENCE = 3.0  # seconds that a pass is repeated for
TIMES = 4  # passes, at most


@dataclass(frozen=True)
class Timing:
    """Seconds of the parts of a stage, and what the process takes before it opens a model.

    Attributes:
        token: forward and backward, of one token; `update`: of the optimizer, once a step.
        looked_at: of one token of an evaluation.
        ready: to open the model, hash what is frozen and let the rest learn.
        imports: bytes of Python with torch and transformers; 0 where a GPU holds the model.
    """

    token: float
    update: float
    looked_at: float
    ready: float
    imports: int

    def training(self, plan: CptPlan, stage: Stage) -> float:
        """Seconds of all steps of a stage, on one of its processes."""
        tokens = plan.accumulation * plan.micro_batch_size * plan.spec.length
        return stage.steps * (tokens * self.token + self.update)

    def evaluation(self, plan: CptPlan, stage: Stage) -> float:
        """Seconds of its evaluations, with that before the training where it is the first."""
        data = plan.spec.data
        sources = len(data.new) + len(data.old) if data else 0
        between = (stage.steps - 1) // plan.evaluate_every
        before = stage is plan.stages[0]
        whole = plan.evaluate_tokens * (1 + before) + plan.between_tokens * before
        tokens = sources * (whole + between * plan.between_tokens)
        return tokens * self.looked_at / plan.processes


def time_stage(plan: CptPlan, stage: Stage, device: str) -> Timing:
    """Time a stage on this machine."""
    import hybridize.cpt.train.stage  # noqa: F401 - a training has Trainer in memory, too

    imports = peak_memory() if device == "cpu" else 0
    began = time.perf_counter()
    tuned = open_model(plan.stack.folder, device)
    let_learn(tuned, stage.policy)
    frozen_hashes(tuned.model)
    ready = time.perf_counter() - began
    narrow_norms(tuned)
    first = stage.policy.first_trained_slot
    if plan.spec.gradient_checkpointing:
        checkpoint_slots(tuned.model, first)
    length = min(TOKENS, plan.spec.length)
    rows = max(1, min(plan.micro_batch_size, TOKENS // length))
    tokens = torch.randint(0, plan.stack.vocabulary, (rows, length), device=device)
    forward = Forward(tuned, start=first)
    cached = plan.spec.cache_prefix is True
    given: dict[str, Any] = {"prefix": forward.below(tokens)} if cached else {}
    learning = [p for p in tuned.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.0, fused=True)

    def train() -> None:
        forward(tokens, tokens, **given)["loss"].backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def evaluate() -> None:
        forward(tokens, tokens)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()

    return Timing(
        token=median_seconds(train, device, runs=TIMES, patience=PATIENCE) / tokens.numel(),
        update=median_seconds(update, device, runs=TIMES, patience=PATIENCE),
        looked_at=median_seconds(evaluate, device, runs=TIMES, patience=PATIENCE) / tokens.numel(),
        ready=ready,
        imports=imports,
    )


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # the other figure begins with that of the process that started this one
        lines = (line.split() for line in status.read_text().splitlines())
        return next(1024 * int(words[1]) for words in lines if words[0] == "VmHWM:")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
