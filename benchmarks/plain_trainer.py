"""transformers' Trainer as it is, with the same frozen set: what `hybridize cpt` is held against.

    python benchmarks/plain_trainer.py MODEL --learns 3 --steps 8 --batch 8 --length 512

Prints tokens per second (median of the steps without the first two), the peak memory of the process
and what the imports take of it; with `--device cuda`, the peak of what torch holds on the GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hybridize.cpt.train.timing import peak_memory

SKIPPED = 2


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Rows of random tokens, each to be predicted."""

    def __init__(self, rows: int, length: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, vocabulary, (rows, length), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Clock(TrainerCallback):
    """Seconds of each step, from its first batch to the optimizer's step."""

    def __init__(self) -> None:
        self.began = 0.0
        self.took: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.took.append(time.monotonic() - self.began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--learns", type=int, required=True, help="lowest layers that learn")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    before, clock = peak_memory(), Clock()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto")
    model.requires_grad_(False)
    for layer in model.model.layers[: arguments.learns]:
        layer.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, max_steps=arguments.steps, disable_tqdm=True,
            use_cpu=arguments.device == "cpu",
            per_device_train_batch_size=arguments.batch, save_strategy="no", report_to="none",
            logging_steps=1, learning_rate=1e-4,
        )  # fmt: skip
        rows = Rows(
            arguments.steps * arguments.batch, arguments.length, int(model.config.vocab_size)
        )
        Trainer(model=model, args=settings, train_dataset=rows, callbacks=[clock]).train()
    tokens = arguments.batch * arguments.length
    speed = tokens / statistics.median(clock.took[SKIPPED:])
    peak = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else peak_memory()
    print(json.dumps({"tokens_per_second": speed, "before": before, "peak": peak}))


if __name__ == "__main__":
    main()
