"""Short runs that say how fast this machine is, for estimates (torch side)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel

from hybridize.files.ranges import Range, hash_ranges
from hybridize.machine.speed import Speed, remember

WIDTHS = (256, 768, 2048)
ROWS, LENGTH = 2, 128  # of tokens that layers read
VOCABULARY, POSITIONS = 32_000, 64  # of a head
REPEATS, PATIENCE = 5, 0.5  # runs of one thing, and seconds after which they are enough
COPIED = 1 << 26  # bytes


def measure_speed(device: str, dtype: str) -> Speed:
    """Time small decoder layers, an output head, a copy and a start, and remember it: some seconds.

    Args:
        device: cpu or cuda.
        dtype: that models compute in, float32 or bfloat16, say.
    """
    layers, training = {}, 1.0
    for width in WIDTHS:
        model = _layer(width, device, dtype)
        flops = 2 * ROWS * LENGTH * sum(p.numel() for p in model.layers.parameters())
        layers[width] = flops / median_seconds(partial(_forward, model), device)
        if width == WIDTHS[1]:
            both = 3 * flops / median_seconds(partial(_backward, model), device)
            training = both / layers[width]
    speed = Speed(
        device=device,
        dtype=dtype,
        layers=layers,
        head=_head(device, dtype),
        training=training,
        copying=_copying(),
        starting=_starting(),
    )
    remember(speed)
    return speed


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Time of some work on a device, which is waited for."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def median_seconds(
    work: Callable[[], object], device: str, *, runs: int = REPEATS, patience: float = PATIENCE
) -> float:
    """Median of a few runs, after one that is not counted: it finds memory and reads the files.

    Args:
        runs: at most.
        patience: seconds after which there are no more.
    """
    work()
    found: list[float] = []
    while len(found) < runs and sum(found) < patience:
        found.append(seconds_of(work, device))
    return median(found)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _layer(width: int, device: str, dtype: str) -> LlamaModel:
    """Two decoder layers of common proportions."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        vocab_size=8,
    )
    model: Any = LlamaModel(config)
    made: LlamaModel = model.to(device=device, dtype=getattr(torch, dtype))
    return made


def _states(model: LlamaModel) -> torch.Tensor:
    shape = (ROWS, LENGTH, model.config.hidden_size)
    return torch.randn(shape, device=model.device, dtype=model.dtype)


@torch.no_grad()
def _forward(model: LlamaModel) -> None:
    model(inputs_embeds=_states(model), use_cache=False)


@torch.enable_grad()
def _backward(model: LlamaModel) -> None:
    model(inputs_embeds=_states(model), use_cache=False).last_hidden_state.sum().backward()


@torch.no_grad()
def _head(device: str, dtype: str) -> float:
    width, kind = WIDTHS[1], getattr(torch, dtype)
    matrix = torch.randn(VOCABULARY, width, device=device, dtype=kind)
    states = torch.randn(POSITIONS, width, device=device, dtype=kind)

    def read_out() -> torch.Tensor:
        return torch.nn.functional.linear(states, matrix).float().log_softmax(-1)

    return 2 * POSITIONS * VOCABULARY * width / median_seconds(read_out, device)


def _copying() -> float:
    """Bytes per second that are written and hashed."""
    with tempfile.TemporaryDirectory() as folder:
        file, data = Path(folder) / "bytes", bytes(COPIED)

        def copy() -> None:
            file.write_bytes(data)
            hash_ranges([Range(file, 0, COPIED, "U8", "bytes")])

        return COPIED / seconds_of(copy, "cpu")


def _starting() -> float:
    """Seconds of a new process that imports what a build's second one does."""
    code = "import torch, transformers; from transformers import PreTrainedModel"
    return seconds_of(lambda: subprocess.run([sys.executable, "-c", code], check=True), "cpu")
