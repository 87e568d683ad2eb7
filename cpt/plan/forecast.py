"""What a run will cost, told before anything is loaded: FLOPs, memory, steps.

A multiply-add is two FLOPs. FLOPs of matrices are counted exactly, and attention within a sequence
over all pairs that a causal mask leaves; memory of activations is a rough estimate. Memory is that
of one process, in bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.console import count, size
from hybridize.cpt.plan.costs import Flops, flops_of, parts
from hybridize.cpt.plan.memory import MOMENTS, Memory, Settings, memory_of
from hybridize.cpt.plan.model_tensors import FLOATS, ModelTensors
from hybridize.cpt.plan.policy import Policy
from hybridize.errors import HybridizeError, did_you_mean


@dataclass(frozen=True)
class Forecast:
    """A run under a policy, beside the same run that trains everything."""

    settings: Settings
    steps: int
    flops: Flops
    full_flops: Flops
    memory: Memory
    full_memory: Memory

    @property
    def ratio(self) -> float:
        """FLOPs of this run over those of full training."""
        return self.flops.total / self.full_flops.total

    def as_dict(self) -> dict[str, Any]:
        """FLOPs of the whole run, bytes on one process."""
        tokens = self.settings.tokens
        sides = (("policy", self.flops, self.memory), ("full", self.full_flops, self.full_memory))
        return {
            "settings": dict(vars(self.settings)),
            "steps": self.steps,
            "flops_ratio": self.ratio,
            "memory_ratio": self.memory.total / self.full_memory.total,
            "estimates": ["memory_bytes.activations", "memory_bytes.logits"],
            **{
                name: {
                    "flops": {k: v * tokens for k, v in vars(flops).items()}
                    | {"total": flops.total * tokens},
                    "memory_bytes": dict(vars(memory))
                    | {"state": memory.state, "total": memory.total},
                }
                for name, flops, memory in sides
            },
        }

    def table(self) -> RenderableType:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("", "this policy", "full training", "ratio"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, one, other in self._flops_rows():
            table.add_row(name, f"{one:.3g}", f"{other:.3g}", _ratio(one, other))
        table.add_row()
        for name, one, other in self._memory_rows():
            table.add_row(name, size(one), size(other), _ratio(one, other))
        return Group(table, Text(), Text(self._summary()))

    def _flops_rows(self) -> list[tuple[str, float, float]]:
        names = {
            "forward": "forward, FLOPs",
            "again": "forward, repeated",
            "activations": "backward to activations",
            "weights": "gradients of weights",
            "total": "all, FLOPs",
        }
        rows = [
            (words, getattr(self.flops, name), getattr(self.full_flops, name))
            for name, words in names.items()
            if name != "again" or self.settings.checkpointing
        ]
        tokens = self.settings.tokens
        return [(words, one * tokens, other * tokens) for words, one, other in rows]

    def _memory_rows(self) -> list[tuple[str, float, float]]:
        names = {
            "parameters": "parameters",
            "gradients": "gradients",
            "moments": f"{self.settings.optimizer}'s moments",
            "activations": "activations (rough estimate)",
            "logits": "logits (estimate)",
            "total": "all, on one process",
        }
        return [
            (words, getattr(self.memory, name), getattr(self.full_memory, name))
            for name, words in names.items()
        ]

    def _summary(self) -> str:
        s = self.settings
        processes = f"{s.processes} process{'es' if s.processes > 1 else ''}"
        return (
            f"{count(s.tokens)} tokens in {self.steps:,} steps of {count(s.batch_tokens)}, "
            f"sequences of {s.length:,}, {processes}, {s.at_once:,} tokens at a time on each"
        )


def forecast(
    stack: ModelTensors,
    policy: Policy,
    *,
    tokens: int,
    batch_tokens: int,
    length: int,
    processes: int = 1,
    optimizer: str = "adamw",
    checkpointing: bool = False,
    cached_prefix: bool = False,
    sharded: bool = False,
    trained_dtype: str = "F32",
    at_once: int | None = None,
    head_tokens: int = 1024,
) -> Forecast:
    """What a run will cost.

    Args:
        tokens: of the whole run.
        batch_tokens: of one optimizer step, on all processes together.
        length: tokens of a sequence.
        optimizer: adamw or sgd (without momentum).
        checkpointing: slots from the first trained one upwards keep their input alone, and run
            forward a second time.
        cached_prefix: the frozen prefix comes from a cache; the pass that fills it is not counted.
        sharded: parameters, gradients and moments are split over the processes (FSDP).
        trained_dtype: of trained parameters, their gradients and moments, as safetensors writes it.
        at_once: tokens of one forward pass on one process; default: those of a step.
        head_tokens: positions whose logits are in memory at a time (chunked cross-entropy).

    Raises:
        HybridizeError: a number below 1, an unknown optimizer or dtype, or a step smaller than a
            sequence on each process.
    """
    settings = Settings(
        tokens=tokens,
        batch_tokens=batch_tokens,
        length=length,
        processes=processes,
        optimizer=optimizer,
        checkpointing=checkpointing,
        cached_prefix=cached_prefix,
        sharded=sharded,
        trained_dtype=trained_dtype,
        at_once=batch_tokens // max(processes, 1) if at_once is None else at_once,
        head_tokens=head_tokens,
    )
    _check(settings)
    found = parts(stack, length)
    all_of_it = frozenset(stack.names(lambda tensor: True))
    learns = frozenset(policy.roles)
    return Forecast(
        settings=settings,
        steps=math.ceil(tokens / batch_tokens),
        flops=flops_of(found, learns, checkpointing=checkpointing, cached_prefix=cached_prefix),
        full_flops=flops_of(found, all_of_it, checkpointing=checkpointing),
        memory=memory_of(stack, found, learns, settings),
        full_memory=memory_of(stack, found, all_of_it, settings),
    )


def _check(settings: Settings) -> None:
    for name in ("tokens", "batch_tokens", "length", "processes", "at_once", "head_tokens"):
        if (number := getattr(settings, name)) < 1:
            raise HybridizeError(f"{name} is {number}", fix="write a number of at least 1")
    if settings.optimizer not in MOMENTS:
        raise HybridizeError(
            f"unknown optimizer '{settings.optimizer}'",
            fix=did_you_mean(settings.optimizer, list(MOMENTS)),
        )
    if settings.trained_dtype not in FLOATS:
        raise HybridizeError(
            f"nothing learns in '{settings.trained_dtype}'",
            fix=did_you_mean(settings.trained_dtype, sorted(FLOATS)),
        )
    least = settings.length * settings.processes
    if settings.batch_tokens < least:
        raise HybridizeError(
            f"a step of {settings.batch_tokens:,} tokens is less than one sequence of "
            f"{settings.length:,} on each of {settings.processes} processes",
            fix=f"take {least:,} tokens a step or more, or shorter sequences",
        )


def _ratio(one: float, other: float) -> str:
    return f"{one / other:.2f}" if other else ""
