"""How fast this machine computes, as it was measured once and is remembered. No torch.

`timing.measure_speed` measures; whatever tells seconds from counts of FLOPs reads it here.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from blake3 import blake3

from hybridize.files.hashes import cache_folder
from hybridize.files.publishing import publish

FORMAT = 1  # of the notes; others are passed over


@dataclass(frozen=True)
class Speed:
    """FLOPs (a multiply-add is two) and bytes per second.

    Attributes:
        layers: width -> FLOPs per second of decoder layers of that width, run forward.
        head: FLOPs per second of an output head, with the softmax behind it.
        training: FLOPs per second forward and backward over those forward.
        copying: bytes per second from file to file, hashed.
        starting: seconds until a new process has imported torch and transformers.
    """

    device: str
    dtype: str
    layers: Mapping[int, float]
    head: float
    training: float
    copying: float
    starting: float

    def seconds(self, flops: float, width: int, *, training: bool = False) -> float:
        """Time of some FLOPs in layers of a width, between the widths that were measured."""
        rate = _between(sorted(self.layers.items()), width)
        return flops / (rate * (self.training if training else 1.0))

    def head_seconds(self, flops: float, *, training: bool = False) -> float:
        """Time of some FLOPs in output heads."""
        return flops / (self.head * (self.training if training else 1.0))


def known_speed(device: str, dtype: str) -> Speed | None:
    """What was measured on this machine; None: nothing was, or with other threads."""
    try:
        found = json.loads(_note(device, dtype).read_bytes())
        if found.pop("format") != FORMAT:
            return None
        found["layers"] = {int(width): rate for width, rate in found["layers"].items()}
        return Speed(**found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remember(speed: Speed) -> None:
    """Keep a measurement for `known_speed`."""
    note = _note(speed.device, speed.dtype)
    with suppress(OSError):  # a cache that cannot be written costs time and nothing else
        publish(note, json.dumps({"format": FORMAT, **asdict(speed)}))


def has_gpu() -> bool:
    """Whether NVIDIA's driver is there: what `--device auto` will probably choose."""
    return Path("/dev/nvidiactl").exists()


def _note(device: str, dtype: str) -> Path:
    words = (*_machine(), device, dtype)
    name = blake3(json.dumps(words).encode()).hexdigest()[:32]
    return cache_folder() / "speed" / f"{name}.json"


def _machine() -> tuple[str, ...]:
    """What decides the speed: processor, cores that may be used, threads that were asked for."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    found = (line.partition(":") for line in lines)
    model = next((text.strip() for key, _, text in found if key.strip() == "model name"), "")
    cores = len(os.sched_getaffinity(0))
    return platform.machine(), model, str(cores), os.environ.get("OMP_NUM_THREADS", "")


def _between(points: list[tuple[int, float]], width: int) -> float:
    """A rate between those of two widths, on a line through logarithms; beyond them, the last."""
    if width <= points[0][0]:
        return points[0][1]
    for (low, slow), (high, fast) in pairwise(points):
        if width <= high:
            share = math.log(width / low) / math.log(high / low)
            return math.exp(math.log(slow) + share * math.log(fast / slow))
    return points[-1][1]
