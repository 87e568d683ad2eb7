"""What a training tells while it runs: a line of `metrics.jsonl` for each step, and progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hybridize.files.publishing import publish
from hybridize.machine import ranks

FILE = "metrics.jsonl"

Told = Callable[[int, float], None]  # steps done, and the loss of the last


class Metrics(TrainerCallback):
    """Appends what is logged to a file, stage by stage.

    Args:
        tell: called after each step.
    """

    def __init__(self, file: Path, stage: int, tell: Told) -> None:
        self.file, self.stage, self.tell = file, stage, tell
        self._began = self._seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step lasts from its first batch to the optimizer's step, without what comes after."""
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See `on_step_begin`."""
        self._seconds = time.monotonic() - self._began

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What was written after the checkpoint that is gone on from is written again."""
        step, is_last = int(state.global_step), state.global_step == state.max_steps
        if ranks.is_main():
            forget(self.file, self.stage, step, measured_again=is_last)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Trainer's own numbers; those of the last, whole-run summary are left to it."""
        found = {key: value for key, value in (logs or {}).items() if key != "epoch"}
        if "train_runtime" in found:
            return
        if "tokens" in found:
            found["tokens_per_second"] = found["tokens"] / max(self._seconds, 1e-9)
            self.tell(int(state.global_step), float(found["loss"]))
        if ranks.is_main():
            line = json.dumps({"stage": self.stage, "step": int(state.global_step), **found})
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def losses(self, step: int) -> list[float]:
        """Of the steps of this stage up to one, as far as they are written down."""
        found = [line for line in _read(self.file) if line["stage"] == self.stage]
        return [line["loss"] for line in found if "loss" in line and line["step"] <= step]


def _read(file: Path) -> list[dict[str, Any]]:
    """Lines that are whole."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:  # cut short by a kill
            continue
    return found


def forget(file: Path, stage: int, step: int, *, measured_again: bool = False) -> None:
    """Drop lines of a stage after a step, of later stages, and one that was cut short.

    Args:
        measured_again: the losses on held-out text at this step, too.
    """
    if not file.is_file():
        return
    here = (stage, step)
    kept = [
        line
        for line in _read(file)
        if (at := (line["stage"], line["step"])) <= here
        and not (measured_again and at == here and "loss" not in line)
    ]
    publish(file, "".join(f"{json.dumps(line)}\n" for line in kept))
