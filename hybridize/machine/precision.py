"""In which dtype models compute: as stored where the device is fast in it, else float32. No torch.

A CPU without instructions for 16-bit matrices emulates them: five times the work of float32, which
holds every bfloat16 and float16 value exactly. Stored bytes are never touched: what is widened is a
copy in memory.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

AUTO = "auto"
SHARE = 0.5  # of the free memory that a widened copy of the weights may take

# What Linux calls the instructions by which a processor multiplies 16-bit matrices (x86, Arm).
INSTRUCTIONS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16"},
}
AMPERE = 8  # first generation of NVIDIA's GPUs with bfloat16


def compute_dtype(stored: str, device: str, *, asked: str = AUTO, widened: int = 0) -> str:
    """The dtype that a model of a stored dtype computes in.

    Args:
        stored: of most of its weights, as config.json names it.
        device: cpu or cuda.
        asked: `auto`, or a dtype, which is taken.
        widened: bytes of a float32 copy of the weights; 0 where layers are read one by one. If they
            would fill more than half of the free memory, `auto` leaves the dtype as stored.
    """
    if asked != AUTO:
        return asked
    if stored not in INSTRUCTIONS or is_fast(stored, device):
        return stored
    return stored if device == "cpu" and widened > SHARE * free_memory() else "float32"


def is_fast(dtype: str, device: str) -> bool:
    """Whether a device multiplies matrices of a 16-bit dtype as fast as float32, or faster."""
    if device == "cuda":
        return dtype == "float16" or gpu_generation() >= AMPERE
    return bool(INSTRUCTIONS[dtype] & cpu_flags())


def free_memory() -> int:
    """Bytes that are free now; files that are only cached count as free."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(available.split()[1]) * 1024


@cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    found = (line.partition(":") for line in lines)
    words = next((text for name, _, text in found if name.strip() in ("flags", "Features")), "")
    return frozenset(words.split())


def gpu_generation() -> int:
    """Major number of NVIDIA's compute capability: 8 is Ampere."""
    import torch

    return int(torch.cuda.get_device_capability()[0])
