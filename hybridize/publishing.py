"""A file appears whole, or not at all. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def publish(file: Path, content: str) -> None:
    """Write a text file in one step, in place of one that may be there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        staged.write_text(content, encoding="utf-8")
        staged.replace(file)
    finally:
        staged.unlink(missing_ok=True)
