"""What a training tells while it runs: a line of `metrics.jsonl` for each step, and progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hybridize.cpt import engine

FILE = "metrics.jsonl"

Told = Callable[[int, float], None]  # steps done, and the loss of the last


class Metrics(TrainerCallback):
    """Appends what is logged to a file, stage by stage.

    Args:
        tell: called after each step.
    """

    def __init__(self, file: Path, stage: int, tell: Told) -> None:
        self.file, self.stage, self.tell = file, stage, tell
        self._last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What was written after the checkpoint that is gone on from is written again."""
        self._last = time.monotonic()
        if engine.is_main():
            forget(self.file, self.stage, int(state.global_step))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Trainer's own numbers; those of the last, whole-run summary are left to it."""
        found = {key: value for key, value in (logs or {}).items() if key != "epoch"}
        if "train_runtime" in found:
            return
        now = time.monotonic()
        if "tokens" in found:
            found["tokens_per_second"] = found["tokens"] / max(now - self._last, 1e-9)
            self.tell(int(state.global_step), float(found["loss"]))
        self._last = now  # what an evaluation takes is no time of the next step
        if engine.is_main():
            line = json.dumps({"stage": self.stage, "step": int(state.global_step), **found})
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def forget(file: Path, stage: int, step: int) -> None:
    """Drop lines of a stage after a step, of later stages, and one that was cut short."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if (found["stage"], found["step"]) <= (stage, step):
            kept.append(line)
    staged = file.with_name(f".{file.name}")
    staged.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    staged.rename(file)
