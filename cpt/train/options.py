"""How a training runs, apart from what its recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """Where and how a training runs; none of it decides what comes of it.

    Attributes:
        engine: single, ddp, fsdp or deepspeed.
        report_to: Trainer's own loggers, by name; `logs`: where those that write files do so.
        resume: go on with a training that was broken off; `force`: begin it anew.
    """

    device: str
    engine: str
    report_to: Sequence[str]
    logs: Path
    resume: bool
    force: bool
    offline: bool
