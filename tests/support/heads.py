"""Models without an output head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.support.readers import save_reader


def base_alone(folder: Path, **options: Any) -> Path:
    """An untied model saved without its head, with a tokenizer."""
    save_reader(folder, "llama", **options)
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
