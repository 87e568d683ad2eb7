"""What a package offers by its own name, imported when it is asked for: torch costs seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`.

    Args:
        modules: of each name, the module of hybridize that defines it; `module:name` where it is
            called otherwise there.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module, _, there = modules[name].partition(":")
        return getattr(import_module(f"hybridize.{module}"), there or name)

    return get
